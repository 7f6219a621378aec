#!/bin/bash
# sbatch examples/brats2020_2x8gpus.sh PATH: two nodes of eight GPUs, one task per GPU.
# Shortly before its time is over, the job saves its state and is queued again. Not run by us yet.
#SBATCH --job-name=clipseg3d
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=6
#SBATCH --time=24:00:00
#SBATCH --signal=SIGUSR1@180
srun clipseg3d fit --config brats2020_2x8gpus --data.root "$1" --ckpt_path last
