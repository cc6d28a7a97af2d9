# Sourced by mnist.sh, cifar.sh and int8.sh: the batches and sizes of `edgekd` for every preset, so that methods are
# compared and not sizes. Losses, spectral norm, optimisers and learning rates stay each preset's own.
# shellcheck shell=bash disable=SC2034
lean=(--set method.generator.latent=128 --set method.generator.width=32 --set method.generator.norm_eps=1e-5
  --set method.student.batch_size=128 --set method.replay.batch_size=128
  --set method.vae.latent=64 --set method.vae.width=32 --set method.vae.released_encoder=false
  --set method.vae.norm_eps=1e-5 --set method.vae.novel=64 --set method.vae.rehearsed=32)
# On CIFAR-10 for every preset: half the usual batches, on a CPU twice the steps in the same time, and mirrored and
# shifted images, as the teachers were trained.
cifar=(--set method.student.batch_size=64 --set method.replay.batch_size=64 --set method.vae.novel=32
  --set method.vae.rehearsed=16 --set method.student.flip=true --set method.student.shift=4)
