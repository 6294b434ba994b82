"""Stores: folders with finished runs, checkpoints, few-shot evaluations and logs."""

from lifelong.store.checkpoints import CHECKPOINTS as CHECKPOINTS
from lifelong.store.checkpoints import Busy as Busy
from lifelong.store.checkpoints import Workshop as Workshop
from lifelong.store.checkpoints import plain as plain
from lifelong.store.evaluations import EVALUATIONS as EVALUATIONS
from lifelong.store.evaluations import QUESTION as QUESTION
from lifelong.store.evaluations import evaluation_file as evaluation_file
from lifelong.store.evaluations import evaluations as evaluations
from lifelong.store.evaluations import keep_evaluation as keep_evaluation
from lifelong.store.evaluations import load_evaluation as load_evaluation
from lifelong.store.files import StoreError as StoreError
from lifelong.store.files import write as write
from lifelong.store.records import LARGEST as LARGEST
from lifelong.store.records import Run as Run
from lifelong.store.records import digest as digest
from lifelong.store.records import find as find
from lifelong.store.records import folder as folder
from lifelong.store.records import load as load
from lifelong.store.records import note as note
from lifelong.store.records import runs as runs
from lifelong.store.records import save as save
from lifelong.store.records import stream_name as stream_name
