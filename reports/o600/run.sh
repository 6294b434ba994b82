#!/bin/sh
# 600 Omniglot characters one image at a time, one pass, 1,000 output units: only a new output layer learns, by Adam, on
# the features of a start. Step sizes are lanes of one stack; they are chosen on search streams, for each length, and
# learned with again on the test stream, of which all lengths are prefixes.
# Usage: sh reports/o600/run.sh [STORE [OPTIONS OF lifelong run]]; what is set below can be set before it.
set -eu
store=${1:-reports/o600/runs}
[ $# -eq 0 ] || shift
: "${WHICH:=random supervised supervised-length anml-first anml-second oml}" "${WIDTH:=64}" "${GATE:=28}" "${STEPS:=2000}" "${SIZE:=28}"
: "${SOURCE:=omniglot(classes=763, size=$SIZE)}" "${LRS:=[0.003, 0.001, 0.0003, 0.0001]}" "${SEEDS:=3}" "${TRIED:=2}"
: "${LENGTHS:=(10, 50, 100, 200, 300, 400, 500, 600)}" "${CHOSEN:=test}" "${LR:=0.0001}"
# 200 background characters that no start has seen; those of the authors are other evaluation characters instead:
# SEARCH="omniglot-o600(search=True)", together with SOURCE="omniglot(classes=963)".
: "${SEARCH:=omniglot-o600(part='background', first=763, classes=201, lengths=(10, 50, 100, 200), size=$SIZE)}"
gated="model='anml_net(width=$WIDTH, gate=$GATE)'"
plain="model='oml_net(width=$WIDTH)'"
mkdir -p "$store/starts"
for which in $WHICH; do
    more=
    case $which in
        random) start="supervised(steps=1, lr=1e-9, $plain)" ;;
        supervised) start="supervised(steps=$STEPS, $plain)" ;;
        supervised-length) start="supervised(steps=$STEPS, $plain)" more=", length=10.0" ;;
        anml-first) start="anml(steps=$STEPS, $gated)" ;;
        anml-second) start="anml(steps=$STEPS, order='second', $gated)" ;;
        oml) start="oml(steps=$STEPS, classes=1, shots=20, others=0, remember=64, lr=$LR, $plain)" ;;
        oml-own) start="oml(steps=$STEPS, lr=$LR, $plain)" ;;
        *) echo "there is no start $which here" >&2; exit 2 ;;
    esac
    file="$store/starts/$which.safetensors"
    lifelong pretrain "$SOURCE" "$start" --out "$file" --store "$store/starts" --quiet
    use="${start%%(*}(file='$file'$more)"
    lifelong run "$SEARCH" "$use" --optimizer "adam(lr=$LRS)" --seeds "$TRIED" --store "$store/search" --quiet "$@"
    best=$(python3 reports/o600/table.py best "$store" "$which" "$CHOSEN")
    lifelong run "omniglot-o600(lengths=$LENGTHS, size=$SIZE)" "$use" --optimizer "adam(lr=$best)" --seeds "$SEEDS" \
        --store "$store/test" --quiet "$@"
done
python3 reports/o600/table.py table "$store" "$CHOSEN"
