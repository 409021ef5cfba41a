#!/usr/bin/env bash
# attrdrop and bench without pip: FOLDER becomes a folder of links, to be the only one on Python's path, since the root
# of the repository has no attrdrop.triton_kernels.
#   bash bench/links.sh FOLDER [LIBRARY.so ...]   these libraries in the place of those built in attrdrop/
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
folder=$1
shift
rm -rf "$folder"
mkdir -p "$folder/attrdrop"
ln -s "$root/bench" "$folder/"
ln -s "$root"/attrdrop/* "$root/triton_kernels" "$folder/attrdrop/"
for library; do ln -sf "$(realpath "$library")" "$folder/attrdrop/"; done
