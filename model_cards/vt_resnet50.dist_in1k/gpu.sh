#!/usr/bin/env bash
# vt_resnet50 in ten minutes of one large GPU; the same command resumes the run:
#   bash model_cards/vt_resnet50.dist_in1k/gpu.sh START TEACHER PIECES OUT --device cuda --compile --workers 14
# START is the folder of `vt-hub convert vt_resnet18 START --grow vt_resnet50 --data-dir photographs`, TEACHER the file
# that model_cards/photographs/teacher.py wrote, PIECES the folder of model_cards/photographs/pieces.py, and OUT/run the
# run. All after OUT goes to `vt-hub distill`. A rehearsal in seconds: --recipe smoke --teacher test_resnet, with a START
# and a TEACHER of these architectures.
set -euo pipefail
start=$1 teacher=$2 pieces=$3 out=$4
mkdir -p "$out/photographs"
for piece in "$pieces"/*.tar; do tar -xf "$piece" -C "$out/photographs"; done
vt-hub distill --recipe "$(dirname "$0")/gpu.yaml" --model "$start" --teacher-checkpoint "$teacher" \
    --data-dir "$out/photographs" --output "$out/run" --minutes 10 "${@:5}"
