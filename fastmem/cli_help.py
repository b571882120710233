"""What the commands say of themselves under ``--help``; the options are listed from the configs."""

from __future__ import annotations

HEAD = """usage: fastmem COMMAND [options]

What does a neural network remember of its training data?

"""

TAIL = """
fastmem COMMAND --help explains a command and lists its options.
Start with: fastmem audit
"""

AUDIT = """Which records of a data set can an attacker name as training data of a model?

Trains many models, each on a random half of a pool of records, so that for
every record some models saw it and some did not. Each model is attacked in
turn with the help of all the others, by every membership attack asked for.
Shows how many members an attacker finds at few false alarms, beside two
controls where there is nothing to find, and writes a report. A run that was
interrupted continues when the same command is given again.

examples:
  fastmem audit                    scikit-learn's digits, 64 models
  fastmem audit --data fashion-mnist --data-root ~/data
  fastmem audit --data cifar10 --model resnet18 --num-models 16 --queries flip
  fastmem audit --data records.npz --model package.module:Net --dry-run

a model of your own, with shadow models of the same network and recipe:
  fastmem audit --data records.npz --model package.module:Net
      --checkpoint model.safetensors --members trained_on.npy

on several machines, over a shared folder or an object store:
  fastmem audit ... --engine ray --ray-address auto --store s3://bucket/run
  fastmem audit ... --out /shared/run --shard 3/8    (one job of eight)
  fastmem audit ... --out /shared/run                (when all have ended)"""

ATTACK = """Membership attacks on what models said, without training anything.

Give the folder of an audit, or three arrays: logits [M, N, C] of M models on
N records, keep [M, N] (who trained on what) and labels [N]. Each model is the
target once, all others are the attacker's.

examples:
  fastmem attack --logits logits.npy --keep keep.npy --labels labels.npy
  fastmem attack --signals runs/audit-digits --attacks lira_online,rmia_online"""

CANARY = """Does a mark that occurs once in training leave a trace in the model?

Pastes a mark into one training record, or a few, and trains pairs of models
of the same initial weights, order and images, one with the mark and one
without. Shows the mark on images that neither saw, scores how far it moves
their answers (M score), and tests the differences within pairs. Beside stand
control marks, models that never saw any, and the tests of the papers, which
reject for models that never saw the mark. An interrupted run continues when
the same command is given again.

examples:
  fastmem canary                   scikit-learn's digits, 20 pairs
  fastmem canary --copies 1,10,100 --regularise none,dropout,weight-decay
  fastmem canary --data mnist --data-root ~/data --model cnn --nulls 40
  fastmem canary --data mnist --evaluation cifar10 --feature mark.png
  fastmem canary --data mnist --checkpoint model.safetensors --label 3"""

TRUST = """How far can prediction-score membership attacks be believed?

Trains pairs of a target and a shadow model, fits the published attacks on the
shadow model, and asks about members and about sets that nobody trained on:
test records, permuted and badly preprocessed ones, noise, other data sets, and
images of a generator that is trained on the way. Does it again with calibrated
models, draws false members until there are as many as asked for, and shows
what an untrained model makes of the same. A run that was interrupted continues
when the same command is given again.

examples:
  fastmem trust                    scikit-learn's digits, 4 pairs
  fastmem trust --data fashion-mnist --data-root ~/data --model cnn
      --num-models 2 --nonmembers all,mnist --recipe.epochs 20
  fastmem trust --data cifar10 --model resnet18 --calibrations laplace
  fastmem trust --generator package.module:function --false-members 10000"""

FEW_SHOT = """What leaks to an attacker who knows only a handful of members?

Trains a model, tells an attacker of a few records whether the model trained on
them, and asks about others: hundreds of times, for every number of known
records and every method asked for. Beside stand the same attack on a model
that never saw the records, on shuffled membership and on random features,
simple thresholds that know as many records, and shadow-model attacks on the
same model, each with what it had to be told and what it found. A run that was
interrupted continues when the same command is given again.

examples:
  fastmem few-shot                 scikit-learn's digits
  fastmem few-shot --data cifar10 --model cnn --recipe.stop-at-train-accuracy 0.6
  fastmem few-shot --task text --text book.txt --variants simpleshot,tim
  fastmem few-shot --features saved.npz --shots 5,10 --episodes 500"""

RECONSTRUCT = """Which training images can be read out of the weights?

Trains a network on a few images until its weights are a sum of its gradients
there, then searches for images whose gradients add up to those weights. Shows
every training image beside what was found, and beside what costs no attack:
rows of the first layer, the mean image, random candidates, images that were
never trained on. Attacks a checkpoint of your own, too. A run that was
interrupted continues when the same command is given again.

examples:
  fastmem reconstruct              10 of scikit-learn's digits
  fastmem reconstruct --data mnist --data-root ~/data --n 20 --victims 5
  fastmem reconstruct --data mnist --sweep 32 --iterations 1000
  fastmem reconstruct --data mnist --checkpoint model.safetensors
      --members trained_on.npy
  fastmem reconstruct --data cifar10 --n 100 --preset cifar-b9dfyspx"""

REWIND = """Do a few weights carry the privacy risk, and does rewinding them help?

Trains many models, each on a random half of a pool of records, finds the
weights of each that carry most risk, puts them back to their values before
training, freezes them there, and trains the rest on. Beside that stand the
published ablations and defences and controls at equal compute: random
weights, other scores, no rewinding at all. Every arm is judged by attackers
whose own models went through the same. A run that was interrupted continues
when the same command is given again.

examples:
  fastmem rewind                   scikit-learn's digits, 32 models
  fastmem rewind --data fashion-mnist --data-root ~/data --model cnn
      --fractions [0.001,0.01,0.03] --tune-epochs 20
  fastmem rewind --data cifar10 --model resnet18 --methods cwrf,tune_only
  fastmem rewind --loss ce --methods cwrf,tune,random,dp_sgd

a model of your own, repaired (and attacked, with models of its recipe):
  fastmem rewind --data records.npz --model package.module:Net
      --checkpoint final.safetensors --initial init.safetensors
      --members trained_on.npy --reference not_trained_on.npy"""

REPORT = """usage: fastmem report DIR

Draws report.html of a finished run again, from its summary.json, scores.csv and report_data.npz.
"""

INFO = """usage: fastmem info

Shows versions, devices, data folders, and for each operator which implementation would run and why.
"""
