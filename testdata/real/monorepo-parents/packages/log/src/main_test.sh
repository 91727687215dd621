echo 'fails' && exit 1
