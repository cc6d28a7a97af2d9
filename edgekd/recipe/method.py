"""The `[method]` table: everything the papers vary, as typed keys. A preset is a TOML file of these.

Attribute docstrings are the reference: docs/recipe.md is made from them.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

AUTO = "auto"
"""What stands for a choice that is made once and then kept: a preset, a student, a number of passes."""


class Table(BaseModel):
    """A TOML table whose unknown keys are errors, as are numbers that are not finite."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )


class GeneratorTable(Table):
    """The novel generator G and the loss it minimises (docs/method.md, "generator step")."""

    latent: int = Field(128, ge=1)
    """Dimensions of its latent code z."""
    width: int = Field(64, ge=4)
    """Channels of its first convolution; later ones halve."""
    upsamplings: int = Field(0, ge=0, le=6)
    """Doublings of the feature map; 0 takes the smallest number that starts at 4 to 8 pixels a side."""
    spectral_norm: bool = False
    """Apply spectral normalisation to its convolutions (the released code does)."""
    norm_eps: float = Field(1e-5, gt=0)
    """Epsilon of its BatchNorm layers (released: 0.8, a strong damping)."""
    image_moments: Literal["auto", "learned", "fixed"] = "auto"
    """Mean and standard deviation of its images: learned, fixed at 0 and 1, or (auto) learned only from a teacher with
    BatchNorm, since nothing but its statistics would hold them."""
    lr: float = Field(2e-3, gt=0)
    """Adam learning rate."""
    schedule: Literal["cosine", "constant"] = "constant"
    """Its learning rate over the exploration, the steps before consolidation."""
    betas: tuple[float, float] = (0.5, 0.999)
    """Adam momentum coefficients."""
    batch_size: int = Field(0, ge=0)
    """Images of an update; 0 takes `student.batch_size`."""
    period: int = Field(5, ge=1)
    """Student steps per generator update."""
    every_step_until: float = Field(0.0, ge=0, le=1)
    """Fraction of the steps before which it learns at every step instead: a fresh generator has little to show."""
    warmup: int = Field(0, ge=0)
    """Generator updates, without adversary, before the first student step."""
    reinit_period: int = Field(0, ge=0)
    """Re-initialise generator and its optimiser every so many generator updates; 0 never."""
    reinit_until: float = Field(0.8, ge=0, le=1)
    """Fraction of the exploration after which no scheduled re-initialisation happens."""
    one_hot: float = Field(1.0, ge=0)
    """Weight of the cross entropy between T(x) and its own answer (DAFL)."""
    balance: float = Field(5.0, ge=0)
    """Weight of the negative entropy of the batch's mean prediction, in nats (released: 5 / ln 10)."""
    activation: float = Field(0.1, ge=0)
    """Weight of the mean magnitude of the teacher's penultimate features (DAFL)."""
    batchnorm: float = Field(1.0, ge=0)
    """Weight of the distance to the teacher's BatchNorm statistics (DeepInversion); idle without BatchNorm."""
    adversary: float = Field(1.0, ge=0)
    """Weight of the disagreement between student and teacher that it maximises."""
    adversary_ramp: tuple[float, float] = (0.0, 0.0)
    """The adversary's weight grows linearly from 0 between these two fractions of the steps."""
    gap: Literal["l1", "kl", "js", "released"] = "l1"
    """Measure of disagreement; "released" is the clamped divergence of the authors' code."""
    detach_teacher: bool = False
    """Let no gradient of the disagreement flow through the teacher (released: true)."""
    student_mode: Literal["eval", "train"] = "eval"
    """Mode of the student in the generator step (released: train)."""

    def period_at(self, step: int, steps: int) -> int:
        """Return the student steps per generator update at a step."""
        return 1 if step < self.every_step_until * steps else self.period


class StudentUpdateTable(Table):
    """The student's own update."""

    batch_size: int = Field(128, ge=2)
    """Novel images a step."""
    reuse: Annotated[int, Field(ge=1)] | Literal["auto"] = 1
    """Times that the student learns from each view. The teacher answers four batches at once, and their views are dealt
    to batches anew each time; 1 answers and forgets batch by batch. "auto" asks how much dearer the teacher is than the
    student: once below three times the multiply-accumulates, four times from twelve on."""
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    """Optimiser of the student."""
    lr: float = Field(2e-3, gt=0)
    """Peak learning rate."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of sgd."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay."""
    warmup: float = Field(0.0, ge=0, lt=1)
    """Fraction of the exploration over which the learning rate rises linearly."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after the warm-up."""
    loss: Literal["l1", "kl"] = "l1"
    """Distance of logits: mean absolute difference, or KL at a temperature."""
    temperature: float = Field(4.0, gt=0)
    """Temperature of kl."""
    flip: bool | Literal["auto"] = False
    """Mirror half of the images, novel and replayed, left to right before teacher and student see them. "auto" mirrors
    colour images alone: a mirrored digit or letter is another one."""
    shift: Annotated[int, Field(ge=0)] | Literal["auto"] = 0
    """Move these images by up to so many pixels in both directions, likewise; "auto" is an eighth of the shorter side
    of colour images and a sixteenth of that of grey ones."""
    mixup: float = Field(0.0, ge=0, le=1)
    """Share of these images that become a weighted mean with another one of the batch, the weight uniform."""
    cutmix: float = Field(0.0, ge=0, le=1)
    """Share of these images in which a rectangle is replaced by that of another one, its area uniform."""
    inherit: bool = False
    """Begin as the teacher, if one of both has every tensor of the other by name and shape (a ResNet of fewer blocks);
    `student.weights` comes before."""
    inherit_slices: bool = False
    """With `inherit`, begin with slices of the teacher where the student is a narrower or shallower network of its kind
    (a WRN-16-1 of a WRN-40-2): evenly spaced channels, and evenly spaced blocks of each stage."""
    hint: float = Field(0.0, ge=0)
    """Weight of the relative squared error of feature maps at the end of each stage, for a student of that family."""
    hint_schedule: Literal["auto", "constant", "linear"] = "constant"
    """Their weight over the steps: constant, or falling linearly to 0. They teach fast, then stand in the way of a
    student of the teacher's own layers; "auto" lets them fade there and keeps those that go through learned maps."""
    hint_adapters: bool = False
    """Give these hints to every other student, too: at the last map of each resolution that both networks have, through
    a 1x1 convolution that is learned beside the student and dropped afterwards."""
    revive: float = Field(0.0, ge=0)
    """Weight of the pull on ReLU channels that answer 0 to the whole batch; 0 leaves them dead."""
    ema_decay: float = Field(0.998, ge=0, lt=1)
    """Decay a step of the averaged student, which every method logs beside the raw one."""
    ship_average: bool = True
    """Whether the averaged student is a candidate for the final one; comparison presets ship the raw one."""

    @property
    def passes(self) -> int:
        """Times that the student learns from each view; once as long as nobody has decided."""
        return self.reuse if isinstance(self.reuse, int) else 1

    @property
    def answered_batches(self) -> int:
        """Batches whose views the teacher answers at once."""
        return 1 if self.passes == 1 else 4

    @property
    def span(self) -> int:
        """Steps that learn from the same views; only between two such spans a checkpoint can lie."""
        return self.passes * self.answered_batches

    def reuse_for(self, teacher_macs: int, student_macs: int) -> int:
        """Return how often each view is learned, by what the teacher's answer costs beside the student's."""
        return self.reuse if isinstance(self.reuse, int) else min(4, max(1, teacher_macs // (3 * max(1, student_macs))))


class ProceduralTable(Table):
    """Images that come from no network, beside those of the generator."""

    share: tuple[float, float] = (0.0, 0.0)
    """Share of procedural images (shapes, noise, formulas) at the first and at the last step, linear in between; with
    [1, 1] there is no generator."""

    @property
    def leaves_generator(self) -> bool:
        """Whether any step has images of a generator."""
        return self.share != (1.0, 1.0)


class ReplayTable(Table):
    """Where old synthetic knowledge comes from."""

    source: Literal["none", "bank", "ema-generator", "vae"] = "vae"
    """No replay, a bank of stored images (memory-bank only), a slow copy of the generator, or the VAE."""
    batch_size: int = Field(32, ge=0)
    """Replayed images a step, beside the novel ones."""
    start: float = Field(0.05, ge=0, le=1)
    """Fraction of the steps before the first replay."""
    bank_size: int = Field(2048, ge=1)
    """Images the bank holds."""
    bank_period: int = Field(50, ge=1)
    """Steps between two deposits of a replay batch into the bank."""
    ema_decay: float = Field(0.95, ge=0, lt=1)
    """Decay per generator update of the slow copy (also kept for selection and calibration)."""


class VaeTable(Table):
    """The VAE that remembers synthetic images (PRE-DFKD)."""

    latent: int = Field(64, ge=1)
    """Dimensions of its code."""
    width: int = Field(64, ge=4)
    """Channels of the decoder's first convolution; the encoder's follow."""
    released_encoder: bool = False
    """Use the encoder of the authors' code: full-resolution convolutions on column-normalised images."""
    norm_eps: float = Field(1e-5, gt=0)
    """Epsilon of its BatchNorm layers."""
    image_moments: Literal["auto", "learned", "fixed"] = "auto"
    """Mean and standard deviation of the decoder's images, as `generator.image_moments`."""
    lr: float = Field(1e-3, gt=0)
    """Adam learning rate of encoder and decoder."""
    updates: int = Field(2, ge=0)
    """Updates per generator period, in its first steps."""
    novel: int = Field(64, ge=1)
    """Novel images of an update."""
    rehearsed: int = Field(32, ge=0)
    """Images of its own memory in an update, against its own forgetting."""
    pixel: float = Field(1.0, ge=0)
    """Weight of the mean absolute pixel error."""
    response: float = Field(1.0, ge=0)
    """Weight of the mean absolute error of the teacher's logits on the reconstruction."""
    feature: float = Field(0.0, ge=0)
    """Weight of the same for penultimate features (in the paper, commented out in the released code)."""
    kl: float = Field(1e-5, ge=0)
    """Weight of the KL divergence to the standard normal, summed over dimensions."""
    sampling: Literal["prior", "tuned", "posterior"] = "posterior"
    """Codes from N(0, I), tuned from it by one Adam step, or from the running aggregate posterior."""
    tuning_lr: float = Field(0.02, gt=0)
    """Learning rate of the tuning step (released: 0.02)."""
    one_hot: float = Field(1.0, ge=0)
    """Weight of the one-hot loss in tuning."""
    balance: float = Field(5.0, ge=0)
    """Weight of the balance loss in tuning, in nats."""
    decoder_leak: float = Field(0.0, ge=0)
    """Share of the tuning loss that also trains the decoder (released: 1, by a gradient left uncleared)."""
    gate: float = Field(0.5, ge=0, le=1)
    """Share of reconstructions that must keep the teacher's answer before replay begins; 0 opens at once."""


class ConsolidationTable(Table):
    """The end of a run, when generator and VAE rest and the student alone learns what they can show."""

    start: float = Field(1.0, ge=0, le=1)
    """Fraction of the steps at which it begins; 1 leaves it out, as published methods do."""
    loss: Literal["l1", "kl"] = "kl"
    """Distance of logits from then on."""
    temperature: float = Field(1.0, gt=0)
    """Temperature of kl from then on."""
    lr: float = Field(2e-3, gt=0)
    """The student's learning rate at its beginning; it falls by half a cosine to 0."""


class HealthTable(Table):
    """When a run is called sick, and what is done (docs/method.md, "health")."""

    window: int = Field(20, ge=1)
    """Generator updates over which health is averaged."""
    grace: int = Field(100, ge=0)
    """Generator updates after a (re-)initialisation that are not judged."""
    min_coverage: float = Field(0.2, ge=0, le=1)
    """Smallest coverage of classes: 0 when all images are of one class, 1 when classes are even."""
    min_diversity: float = Field(0.02, ge=0)
    """Smallest standard deviation between images, relative to that within a batch."""
    max_reinits: int = Field(3, ge=0)
    """Re-initialisations of a collapsed generator before the run stops with exit code 5."""


class MethodTable(Table):
    """A distillation method. Presets: `edgekd recipes`."""

    preset: str = AUTO
    """File of recipes/methods/ that gives the defaults of this table; auto takes edgekd where the teacher has BatchNorm
    and edgekd-replay where it has none."""
    source: str = ""
    """Where the preset's values come from."""
    steps: int = Field(0, ge=0)
    """Student updates; 0 takes the number from `steps_by_area`."""
    minutes: float = Field(0.0, ge=0)
    """What `--minutes` asked for; the number of steps it led to stands in `steps`."""
    steps_by_area: tuple[tuple[int, int], ...] = ((256, 2000), (1024, 20000), (9216, 60000), (50176, 400000))
    """(largest number of pixels, steps) for at most 10 classes; twice as many up to 100, four times beyond."""
    generator: GeneratorTable = GeneratorTable()
    procedural: ProceduralTable = ProceduralTable()
    student: StudentUpdateTable = StudentUpdateTable()
    replay: ReplayTable = ReplayTable()
    vae: VaeTable = VaeTable()
    consolidation: ConsolidationTable = ConsolidationTable()
    health: HealthTable = HealthTable()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        low, high = self.generator.adversary_ramp
        if not 0 <= low <= high <= 1:
            raise ValueError("generator.adversary_ramp must be two fractions in order, such as [0.25, 0.75]")
        if not all(0 <= share <= 1 for share in self.procedural.share):
            raise ValueError("procedural.share must be two shares from 0 to 1, such as [0.5, 0.0]")
        if self.vae.updates > self.generator.period:
            raise ValueError("vae.updates cannot exceed generator.period: at most one VAE update a step")
        if self.vae.novel > self.student.batch_size:
            raise ValueError("vae.novel cannot exceed student.batch_size: it learns from the novel batch")
        self._check_replay()
        return self

    def _check_replay(self) -> None:
        """Raise ValueError where the source of replay cannot work."""
        replay, vae = self.replay, self.vae
        if replay.source == "bank" and replay.bank_size < replay.batch_size:
            raise ValueError("replay.bank_size must hold at least one replay.batch_size")
        if replay.source == "vae" and replay.batch_size and not vae.updates:
            raise ValueError('vae.updates = 0 would replay an untrained decoder; set replay.source = "none"')
        tuned = vae.sampling == "tuned" and replay.source == "vae"
        if tuned and 1 in (replay.batch_size, vae.rehearsed):
            raise ValueError("tuned codes have moments over the batch: replay.batch_size and vae.rehearsed cannot be 1")

    @property
    def generator_batch_size(self) -> int:
        """Images of a generator update."""
        return self.generator.batch_size or self.student.batch_size

    def steps_for(self, pixels: int, classes: int) -> int:
        """Return the number of steps for an input of `pixels` = height x width and so many classes."""
        if self.steps:
            return self.steps
        base = next((n for area, n in self.steps_by_area if pixels <= area), self.steps_by_area[-1][1])
        return base * (1 if classes <= 10 else 2 if classes <= 100 else 4)
