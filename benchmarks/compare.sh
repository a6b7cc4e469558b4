#!/usr/bin/env bash
# The comparisons of docs/results.md: about two hours on two cores; finished runs are not run again.
#
#   benchmarks/compare.sh MODEL DATA OUT      # MODEL: the 22.7M masked model; DATA: its data sets and k16 splits
#
# MeZO's learning rates come from a trial of 150 steps on one seed (k = 512): full 1e-5 of {1e-5, 3e-5, 1e-4}, LoRA 1e-3
# of {1e-3, 5e-3}, prefix 1e-2. Backpropagation takes the middle of the paper's grid. Batches of 16; 300 steps of MeZO
# (600 forward passes), 100 of backpropagation, dev rows at half time and at the end: chosen to fit the time.
set -euo pipefail
model=$1 data=$2 out=$3
methods="zero-shot lp mezo mezo-lora mezo-prefix lp-mezo ft ft-lora ft-prefix"
settings="*mezo*.max_steps=300 ft*.max_steps=100 *.eval_steps=0.5 *.per_device_train_batch_size=16
    mezo.learning_rate=1e-5 lp-mezo.learning_rate=1e-5 mezo-lora.learning_rate=1e-3 mezo-lora.eps=1e-2"
run() {
    set -f # the patterns are zerograd's
    zerograd compare --model "$model" --methods $methods --set $settings "$@"
}
run --task sst2 --data "$data/sst2" --k 512 --seeds 5 --output_dir "$out/sst2-k512"
run --task sst2 --data "$data/k16/sst2/{seed}" --test_data "$data/sst2" --seeds 5 --output_dir "$out/sst2-k16"
run --task trec --data "$data/k16/trec/{seed}" --test_data "$data/trec" --seeds 2 --output_dir "$out/trec-k16"
run --task rte --data "$data/k16/rte/{seed}" --test_data "$data/rte" --seeds 1 --output_dir "$out/rte-k16"
zerograd report "$out/sst2-k512" "$out/sst2-k16" "$out/trec-k16" "$out/rte-k16"
