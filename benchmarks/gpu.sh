#!/usr/bin/env bash
# Speed on one GPU, in under ten minutes: bash benchmarks/gpu.sh OUT. It writes OUT/*.json, with the card's name.
# Compiled networks in bf16 and channels_last: VT-ResNets beside the ResNet and the trunk, a training step of them, and
# VT-FPN beside the panoptic FPN. A rehearsal on a CPU, in a minute:
#   DEVICE=cpu CLASSIFIERS=test_vt_resnet SEGMENTER=test_vt_fpn BATCH=2 FPN_BATCH=2 SIZE=64 ROUNDS=2 bash benchmarks/gpu.sh OUT
set -euo pipefail
out=$1
mkdir -p "$out"
read -ra classifiers <<< "${CLASSIFIERS:-vt_resnet18 vt_resnet50}"
common=(--dtype bf16 --channels-last --compile --device "${DEVICE:-cuda}" --rounds "${ROUNDS:-15}")
vt-hub benchmark "${classifiers[@]}" --batch-size "${BATCH:-256}" "${common[@]}" --fuse --result "$out/vt_resnet_gpu.json"
vt-hub benchmark "${classifiers[@]}" --batch-size "${BATCH:-256}" "${common[@]}" --train --result "$out/vt_resnet_gpu_training.json"
vt-hub benchmark "${SEGMENTER:-vt_fpn_resnet50}" --batch-size "${FPN_BATCH:-16}" --size "${SIZE:-512}" "${common[@]}" --result "$out/vt_fpn_gpu.json"
