net() { echo "net: $*"; }
