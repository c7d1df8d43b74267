#!/bin/sh
# Restore the JPEGs that are newer than the last run of this script.
#
#     new_photos.sh ALBUM PORTRAITS OUT
#
# OUT lies outside ALBUM. It gets the restored photos, and photos.jsonl: one line of JSON for each photo of this run.
# The script ends with facefix's exit code. Unless that is 0, the next run takes the same photos again; facefix leaves
# alone those that are done.
set -eu

mkdir -p "$3"
album=$(cd "$1" && pwd)
portraits=$(cd "$2" && pwd)
out=$(cd "$3" && pwd)
stamp=$out/last-run

set --
if [ -e "$stamp" ]; then
    set -- -newer "$stamp"
fi
touch "$stamp.new"

cd "$album" # names below the album keep their folders in OUT
code=0
find . -type f \( -iname '*.jpg' -o -iname '*.jpeg' \) "$@" -print0 |
    facefix restore - -0 --refs "$portraits" --output "$out" --quiet --jsonl >"$out/photos.jsonl" || code=$?

if [ "$code" -eq 0 ]; then
    mv "$stamp.new" "$stamp"
fi
exit "$code"
