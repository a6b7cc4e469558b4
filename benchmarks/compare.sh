#!/usr/bin/env bash
# The comparisons of docs/results.md: about two hours on two cores; finished runs are not run again.
#
#   benchmarks/compare.sh MODEL DATA OUT      # MODEL: the 22.7M masked model; DATA: its data sets and k16 splits
#
# MeZO's learning rates come from a trial of 150 steps on one seed (k = 512): full 1e-5 of {1e-5, 3e-5, 1e-4}, LoRA 1e-3
# of {1e-3, 5e-3}, prefix 1e-2. Backpropagation takes the middle of the paper's grid. Batches of 16; 300 steps of MeZO
# (600 forward passes), 100 of backpropagation, dev rows at half time and at the end: chosen to fit the time. TREC and
# RTE have one seed, RTE a third of the steps of MeZO and half of backpropagation's.
set -euf -o pipefail # -f: the patterns are zerograd's
model=$1 data=$2 out=$3
some="zero-shot lp mezo mezo-lora mezo-prefix ft"
all="$some lp-mezo ft-lora ft-prefix"
settings="*.eval_steps=0.5 *.per_device_train_batch_size=16 mezo.learning_rate=1e-5 mezo-lora.learning_rate=1e-3
    mezo-lora.eps=1e-2"
long="*mezo*.max_steps=300 ft*.max_steps=100"
short="*mezo*.max_steps=100 ft*.max_steps=50"
k16() { echo --task "$1" --data "$data/k16/$1/{seed}" --test_data "$data/$1" --output_dir "$out/$1-k16"; }
run() { zerograd compare --model "$model" "$@"; }
probe=lp-mezo.learning_rate=1e-5
run --methods $all --set $settings $long $probe --task sst2 --data "$data/sst2" --k 512 --output_dir "$out/sst2-k512"
run --methods $all --set $settings $long $probe $(k16 sst2)
run --methods $some --set $settings $long --seeds 1 $(k16 trec)
run --methods $some --set $settings $short --seeds 1 $(k16 rte)
zerograd report "$out/sst2-k512" "$out/sst2-k16" "$out/trec-k16" "$out/rte-k16"
