#!/bin/sh
# Split Omniglot as in table 2 of the OML paper (Javed & White 2019, arXiv:1905.12588): 50 tasks of 1 character and 20 of
# 5, one image at a time, one pass, memories of 200; from a standard, a pre-trained and an OML start. Starts are learned on
# 763 background characters, step sizes are chosen on the other 201, and the table is of evaluation characters.
# Usage: sh reports/split-omniglot/run.sh [STORE [OPTIONS OF table.py]]
set -eu
store=${1:-reports/split-omniglot/runs}
[ $# -eq 0 ] || shift
mkdir -p "$store"
python3 reports/split-omniglot/table.py "$store" "$@" | tee "$store/../report.md"
