# Run inside a build step, on the image the program is shipped in.
set -eu
got=$(echo "The cat saw the other cat; the end." | words 2)
want="3 the
2 cat"
[ "$got" = "$want" ] || { echo "got: $got"; exit 1; }
[ -z "$(words </dev/null)" ]
echo "words counts as it should"
