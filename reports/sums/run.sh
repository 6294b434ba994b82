#!/bin/sh
# Six sums against their parts, 10 seeds: rotated MNIST as in GEM (20 angles of 1,000 digits, one pass, batch 10,
# tested on 1,000 digits each) and class-incremental split MNIST (300 steps of 10 a task). The strength of every penalty
# is chosen by itself on streams of three other seeds, by training examples that were held out; a sum has those of its
# parts. Everything else is at its default. Usage: sh reports/sums/run.sh [STORE [OPTIONS OF lifelong run]]
set -eu
store=${1:-reports/sums/runs}
[ $# -eq 0 ] || shift
: "${WHICH:=rotated split}"  # streams
measured() {
    stream=$1
    shift
    set -- --batch-size 10 --model "mlp(hidden=(100, 100))" --optimizer "sgd(lr=0.05)" --store "$store" "$@"
    lifelong tune "$stream" "ewc(strength=[0.01, 0.1, 1.0, 10.0])" "si(strength=[0.01, 0.03, 0.1, 0.3, 1.0])" \
        "mas(strength=[0.001, 0.01, 0.1, 0.3])" "lwf(strength=[0.01, 0.03, 0.1, 0.3, 1.0])" --seeds 3 "$@"
    python3 reports/sums/chosen.py "$store" "${stream%%(*}" > "$store/strategies"
    while IFS= read -r strategy; do
        set -- "$strategy" "$@"
    done < "$store/strategies"
    # A diverged run ends with 1; the table says so.
    lifelong run "$stream" --seeds 10 "$@" || [ $? -eq 1 ]
}
for which in $WHICH; do
    case $which in
        rotated) measured "rotated-mnist-gem(test_examples=1000)" "$@" ;;
        split) measured split-mnist --steps 300 "$@" ;;
        *) echo "there is no stream $which here" >&2; exit 2 ;;
    esac
done
lifelong report --store "$store" --reference parts --out "$store/.."
