date -d "@$1" '+%A, %d. %B %Y %H:%M %Z'
/usr/bin/printf "%'d\n" 1234567
printf 'Äpfel\nZebra\nApfel\n' | sort | tr '\n' ' '
echo
