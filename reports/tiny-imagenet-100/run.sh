#!/bin/sh
# 100 classes of Tiny-ImageNet (tiny-imagenet-100: neither Tiny-ImageNet nor mini-ImageNet), 64x64 photographs: ten tasks
# of ten classes, class-incremental, one pass in batches of 10 with the reduced ResNet-18; and starts that are learned on
# 64 of the classes, streamed on 20 others. 'short' is what two processor cores do in about an hour, 'full' for a GPU;
# anything else tries the commands out. Learning rate of DER on Tiny-ImageNet (0.03); nothing was chosen on these streams.
# Usage: sh reports/tiny-imagenet-100/run.sh [STORE [short|full|tiny [OPTIONS OF lifelong run]]]
set -eu
store=${1:-reports/tiny-imagenet-100/runs}
budget=${2:-short}
[ $# -eq 0 ] || shift
[ $# -eq 0 ] || shift
model="resnet18" wide=32 stream=tiny-imagenet-100-oml
case "$budget" in
short) train=50 test=10 capacity=500 seeds=3 protonet=400 oml=400 oml_lr=0.0003 tasks=10 ;;
full) train=250 test=50 capacity=2000 seeds=10 protonet=20000 oml=20000 oml_lr=0.0001 wide=64 tasks=10 ;;
*)
    train=2 test=1 capacity=10 seeds=1 protonet=1 oml=1 oml_lr=0.0003 wide=2 tasks=2 model="resnet18(width=1)"
    stream="tiny-imagenet-100-oml(lengths=(2,), train=2, test=2)"
    ;;
esac
mkdir -p "$store/starts"
replay="capacity=$capacity, replay=10"
lifelong run "split-tiny-imagenet-100(train=$train, test=$test, tasks=$tasks)" finetune "er($replay)" "derpp($replay)" \
    "er($replay) + lwf" --batch-size 10 --optimizer "sgd(lr=0.03)" --model "$model" --seeds "$seeds" \
    --store "$store/split" --quiet "$@"
start() {
    lifelong pretrain tiny-imagenet-100 "$2" --out "$store/starts/$1.safetensors" --store "$store/starts" --quiet
}
start protonet "protonet(steps=$protonet, way=20, shots=5, queries=5, model='conv4(width=$wide, norm=\\'batch\\', down=\\'pool\\')')"
start oml "oml(steps=$oml, lr=$oml_lr, model='conv4(width=$wide, down=\\'pool\\')')"
# Twenty new classes of 30 photographs, class after class, one at a time: an output layer by Adam, or nearest means.
lifelong run "$stream" "random" "protonet(file='$store/starts/protonet.safetensors', length=10)" \
    "oml(file='$store/starts/oml.safetensors')" "oml(file='$store/starts/oml.safetensors') + er(capacity=100)" \
    "protonet(file='$store/starts/protonet.safetensors') + ncm" "oml(file='$store/starts/oml.safetensors') + ncm" \
    --seeds "$seeds" --store "$store/stream" --quiet "$@"
for what in split stream; do
    lifelong report --store "$store/$what" --out "$store/../$what"
done
