uses() { sed -n 's/.*uses //p' "apps/$1/package.list"; }
