#!/bin/sh
# Few-shot Omniglot: starts learned on the 964 background characters and their rotations, asked about the 659 characters
# of the evaluation part, 28x28 pixels. 'short' is what one processor core learns in an hour and a quarter, 'full' the papers' budgets
# (for a GPU); anything else tries the commands out on a few made-up characters, and says nothing.
# Usage: sh reports/few-shot/run.sh [STORE [short|full]]
set -eu
store=${1:-reports/few-shot/runs}
learned="omniglot(turned=True)" asked="omniglot(part='evaluation')" options=""
mkdir -p "$store"

# NAME START [OPTIONS OF pretrain]: learns a start.
start() {
    name=$1 made=$2
    shift 2
    lifelong pretrain "$learned" "$made" --store "$store" --out "$store/$name.safetensors" --quiet "$@"
}

# NAME [OPTIONS OF fewshot]: asks it.
ask() {
    name=$1
    shift
    lifelong fewshot "$asked" "$store/$name.safetensors" --store "$store" --quiet $options "$@"
}

case "${2:-short}" in
short)
    start protonet "protonet(steps=1000, halve=250)" --precision bfloat16
    start maml "maml(steps=12000, tasks=8, fall=True)"
    start fomaml24 "fomaml(steps=24000, tasks=8, fall=True)"
    start fomaml "fomaml(begin='$store/fomaml24.safetensors', steps=40000, tasks=8, fall=True)"
    for steps in 30 100 300; do
        start "reptile$steps" "reptile(steps=$steps)"
    done
    ask protonet
    ask protonet --shots 5 --no-transductive
    ask protonet --way 20 --no-transductive
    ask protonet --way 20 --shots 5 --no-transductive
    for name in maml fomaml; do
        ask "$name"
        ask "$name" --queries 1
    done
    for steps in 30 100 300; do
        ask "reptile$steps" --episodes 200 --no-transductive
    done
    ;;
full)
    start protonet "protonet(steps=20000)" --precision bfloat16
    start protonet5 "protonet(steps=20000, shots=5)" --precision bfloat16
    start maml "maml(steps=60000)"
    start maml5 "maml(steps=60000, shots=5, queries=5)"
    start maml20 "maml(steps=60000, way=20, tasks=16, inner=5, rate=0.1, test_inner=5)"
    start fomaml "fomaml(steps=60000)"
    start anil "anil(steps=60000)"
    start meta_sgd "meta_sgd(steps=60000)"
    for steps in 1000 10000 100000; do
        start "reptile$steps" "reptile(steps=$steps)"
    done
    for way in 5 20; do
        ask protonet --way "$way"
        ask protonet5 --way "$way" --shots 5
    done
    for name in maml fomaml anil meta_sgd reptile1000 reptile10000 reptile100000; do
        ask "$name"
    done
    ask maml5 --shots 5
    ask maml20 --way 20
    ;;
*)
    learned="glyphs(classes=12)" asked="glyphs(classes=12)" options="--overlap --episodes 3 --queries 2"
    start maml "maml(steps=1, tasks=2, model='conv4(width=4, norm=\'batch\')')"
    ask maml
    ;;
esac
lifelong report --store "$store" --out "$store/.."
