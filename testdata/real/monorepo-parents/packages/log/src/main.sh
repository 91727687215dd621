log() { echo "log: $*"; }
