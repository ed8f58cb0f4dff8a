"""The experiment configuration: what a YAML file under ``configs/`` may say, as dataclasses.

Reading YAML and command-line overrides into these classes is :mod:`tzn.config_loading`'s work.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, MinLen, Predicate

from tzn.checked import AtLeastZero, Checked, Count, CountOrZero, Positive, PositiveShare, Share, ShareBelowOne
from tzn.errors import ConfigError
from tzn.models.config import ActionFormerConfig, TemporalZoomNetConfig

LEAST_SEGMENTS = 200  # what the field gives every recording

CropRatio = Annotated[
    tuple[float, float], Predicate(lambda r: 0 < r[0] <= r[1] <= 1), "a list of 2 values 0 < low <= high <= 1"
]
Steps = Annotated[int, Gt(1), "an integer > 1"]
Teacher = Annotated[str, MinLen(1), "a checkpoint, the folder of a run"]
Start = Annotated[str, MinLen(1), "a model that comes with tzn, a checkpoint, the folder of a run"]
Chunk = Annotated[int, Ge(256), "an integer >= 256"]
Scales = Annotated[tuple[float, float], Predicate(lambda s: min(s) > 0), "a list of 2 values > 0"]


@dataclass(frozen=True)
class DataConfig(Checked):
    """Where recordings lie and how a feature step maps to seconds.

    Step ``i`` covers raw frames ``[i * feat_stride, i * feat_stride + num_frames)``; its centre is at
    ``(i * feat_stride + 0.5 * num_frames) / fps`` seconds.

    Attributes:
        annotations: annotation file, relative to the data folder (``.json`` or ``.json.gz``).
        features: folder of feature files, relative to the data folder; or a container of them (``.h5``, ``.lmdb``, ``.tar``,
            ``.zarr``, ``.pt``), or an address of either (``s3://…``).
        file_prefix: put before the recording id in feature file names.
        file_suffix: ``.npy`` or ``.npz``.
        npz_key: array name inside ``.npz`` files.
        feat_stride: raw frames from one feature step to the next.
        num_frames: raw frames that one feature step sees.
        fps: raw frames per second; ``None`` takes each recording's own from the annotations.
        usual_fps: of recordings that have none of their own; ``None``: training puts the rate that its recordings share.
        pool: stored steps that become one grid step, for features that are much finer than the actions are long; the
            rest of a recording that fills no grid step is left out. Frames count as stored: ``feat_stride`` stays.
        pool_kind: "mean" averages them, "flatten" puts them side by side (``model.input_dim`` = pool x stored channels).
        log_channels: stored channels with rare large values, which the network sees as ``asinh(x / scale)``: linear up to the
            scale, logarithmic beyond.
        log_scales: the scale of each of them.
        fixed_length: resize every recording's features linearly to this many steps (ActivityNet practice).
        train_subset: subset name of the training recordings (case-insensitive).
        test_subset: subset name of the test recordings.
        validation: glob patterns of recording ids held out of ``train_subset`` for validation.
        strict: refuse annotations with bad segments; otherwise repair or drop them and say how many.
        single_class: replace all labels by one class "action" (ActivityNet practice, external classes).
        max_length: training crops are at most this many steps.
        crop_ratio: random crops keep this share (low, high) of recordings not longer than ``max_length``.
        trunc_thresh: a cropped segment stays when at least this share of its length is inside.
        noise: standard deviation of Gaussian noise added to standardised features in training.
        gain: standard deviation of a random per-channel log gain in training, from no further than five standard deviations
            from the channel's mean (from zero, where that is nearer).
        samples_per_step: consecutive samples that a step's features are, flattened sample by sample; gain and stretch then
            treat them as the signal that they are.
        stretch: recordings are resampled in time by a factor in ``[1/(1+stretch), 1+stretch]`` in training.
        exact_channels: stored channels that neither noise nor gain changes (flags, one-hot columns, angles that wrap).
        crops_per_epoch: training crops in an epoch, spread over the recordings in proportion to their length (one that is
            shorter than ``max_length`` counts as so long); ``None``: one crop of every recording, however long.
        balance: share of these crops that show a segment of a class drawn evenly, so that rare classes are seen.
    """

    section: ClassVar[str] = "data"

    annotations: str = "annotations.json"
    features: str = "features"
    file_prefix: str = ""
    file_suffix: Literal[".npy", ".npz", ".pt"] = ".npy"
    npz_key: str = "feats"
    feat_stride: Positive = 1.0
    num_frames: AtLeastZero = 1.0
    fps: Positive | None = None
    usual_fps: Positive | None = None
    pool: Count = 1
    pool_kind: Literal["mean", "flatten"] = "mean"
    log_channels: tuple[CountOrZero, ...] = ()
    log_scales: tuple[Positive, ...] = ()
    fixed_length: Steps | None = None
    train_subset: str = "training"
    test_subset: str = "test"
    validation: tuple[str, ...] = ()
    strict: bool = True
    single_class: bool = False
    max_length: Count = 2304
    crop_ratio: CropRatio | None = (0.9, 1.0)
    trunc_thresh: Share = 0.5
    noise: AtLeastZero = 0.0
    gain: AtLeastZero = 0.0
    samples_per_step: Count = 1
    stretch: AtLeastZero = 0.0
    exact_channels: tuple[CountOrZero, ...] = ()
    crops_per_epoch: Count | None = None
    balance: Share = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            len(self.log_scales) == len(self.log_channels),
            "log_scales",
            f"one for each of {len(self.log_channels)} channels",
        )
        self.require(self.pool == 1 or self.fixed_length is None, "pool", "1 with data.fixed_length")
        self.require(not self.balance or self.crops_per_epoch is not None, "balance", "0 without data.crops_per_epoch")


@dataclass(frozen=True)
class FrontEndConfig(Checked):
    """How recordings (video, sound, signals) become the feature steps that the network sees.

    A run holds it, so that ``tzn predict`` does to a new recording what was done to those it learned from.

    Attributes:
        extractor: "efficientnet-lite0", "torchvision:NAME" or "timm:NAME" for video, "log-mel" for sound, "samples" for
            signals (CSV, Parquet, EDF, WFDB); ``None``: features are made elsewhere.
        rate: pictures taken a second (``None``: 5), log-mel steps a second (``None``: 100), or samples a second that
            signals are resampled to (must be set).
        fit: "stretch" squeezes the whole picture into the network's square, "crop" takes its centre.
        size, mean, std: side in pixels and normalisation of what the network sees; ``None`` and empty: its own.
        weights: digest of the network's weights; another network is refused.
        weights_file: state dict for "torchvision:NAME" and "timm:NAME"; ``None``: the library's own.
        channels: names of a signal's channels, in order; empty: all.
        samples_per_step: consecutive samples of a signal that make one feature step.
        time: name of the column with the times; ``None``: the one called time, timestamp, t, ….
        time_unit: "s", "ms", "us" or "ns"; ``None``: as the column's name ends, else seconds.
        sample_rate: samples a second of tables without times.
        max_gap: holes in a signal up to this many seconds are bridged, longer ones refused.
    """

    section: ClassVar[str] = "front_end"

    extractor: str | None = None
    rate: Positive | None = None
    fit: Literal["stretch", "crop"] = "stretch"
    size: Count | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    weights: str | None = None
    weights_file: str | None = None
    channels: tuple[str, ...] = ()
    samples_per_step: Count = 1
    time: str | None = None
    time_unit: Literal["s", "ms", "us", "ns"] | None = None
    sample_rate: Positive | None = None
    max_gap: AtLeastZero = 1.0


@dataclass(frozen=True)
class TrainingConfig(Checked):
    """Optimisation recipe.

    Attributes:
        epochs: passes over the training recordings, warm-up included.
        warmup_epochs: epochs of linear warm-up before the cosine decay; where they are not fewer than ``epochs``, the
            first fifth of the steps.
        batch_size: recordings per optimiser step over all devices and accumulation steps.
        accumulate: micro-batches per optimiser step.
        learning_rate, weight_decay: of AdamW; biases, norms, scales and position biases are not decayed.
        clip_norm: global L2 gradient norm.
        ema_decay: decay of the exponential average of the weights; 0 switches it off.
        precision: Lightning precision, e.g. "32-true", "bf16-mixed", "16-mixed".
        seed: seeds weights, order, crops and stochastic depth.
        num_workers: data loader processes.
        validate_every: epochs between validations (0: only at the end).
        patience: validations in a row with an mAP more than a standard error below the best one, after which training ends
            (0: it runs to its end).
        retries: how often training begins anew with a third of the learning rate when the loss does not fall, or is no
            number any more, in its first fifth of steps.
        class_weight, offset_weight, boundary_weight, depth_weight: weights of the losses.
        slope_weight: alpha, weight of the (slope - 1)^2 term inside the boundary loss.
        boundary_loss: "laplace" (negative log-likelihood) or "l1" (the paper's form).
        loss_norm: starting value of the running number of positive points that normalises the losses.
        label_smoothing: of the focal loss.
        center_radius: positive points lie within this many strides of a segment's centre.
        target_depth: mean depth tau that the budget loss aims at (1 switches the budget loss off).
        depth: of a TemporalZoomNet: "learned", or "random": every step trains at a depth of its own, whatever the network
            would choose, so that it knows every exit (for measuring what depth is worth).
        depth_warmup: share of training over which the target falls from 1 to ``target_depth``.
        teacher: checkpoint, or folder of a run, of a trained TemporalZoomNet that a TemporalZoomNet learns from besides
            the annotations; ``None``: no teacher.
        start: model that comes with tzn, checkpoint, or folder of a run whose weights training starts from, as far as they
            fit, see :mod:`tzn.training.start`; ``None``: random weights.
        distill_class_weight, distill_boundary_weight, distill_depth_weight: weights of the teacher's class probabilities,
            boundary distances and depths, see :mod:`tzn.training.distillation`.
    """

    section: ClassVar[str] = "training"

    epochs: Count = 35
    warmup_epochs: CountOrZero = 5
    batch_size: Count = 2
    accumulate: Count = 1
    learning_rate: Positive = 1e-4
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    ema_decay: ShareBelowOne = 0.999
    precision: str = "32-true"
    seed: int = 0
    num_workers: int = 0
    validate_every: int = 5
    patience: CountOrZero = 0
    retries: CountOrZero = 0
    class_weight: float = 1.0
    offset_weight: float = 1.0
    boundary_weight: float = 1.0
    depth_weight: float = 1.0
    slope_weight: float = 0.1
    boundary_loss: Literal["laplace", "l1"] = "laplace"
    loss_norm: float = 100.0
    label_smoothing: float = 0.0
    center_radius: float = 1.5
    target_depth: PositiveShare = 0.6
    depth: Literal["learned", "random"] = "learned"
    depth_warmup: float = 0.5
    teacher: Teacher | None = None
    start: Start | None = None
    distill_class_weight: AtLeastZero = 1.0
    distill_boundary_weight: AtLeastZero = 0.3
    distill_depth_weight: AtLeastZero = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            self.batch_size % self.accumulate == 0,
            "accumulate",
            f"a divisor of training.batch_size = {self.batch_size}",
        )


@dataclass(frozen=True)
class InferenceConfig(Checked):
    """From network outputs to detections.

    Attributes:
        mode: "refine" (anchor-free segments snapped to boundary crossings), "pair" (start and end crossings
            joined) or "anchor" (anchor-free segments as they are).
        estimator: "vote_median", "vote_mean" or "crossing".
        vote_window: W, steps on either side of a crossing that vote.
        vote_correlation: correlation of the errors of neighbouring votes, in [0, 1]; standard errors of crossings grow by
            ``sqrt(1 + 2 W * vote_correlation)``. One network's errors at neighbouring steps are nearly equal.
        std_scale: factors on the standard errors of detections: of ends that a crossing moved, and of all others. ``tzn
            calibrate`` stores them with the checkpoint; they change no segment, score or order.
        min_slope: an up-crossing counts when the field's slope there exceeds this.
        snap_sigmas: a segment end snaps to a crossing within this many combined standard errors.
        quality: exponent of the expected-overlap factor on the score (0: class score only).
        budget: mean depth to run at (``None``: as trained).
        threshold: of a model with a boundary stream: the Laplace scale, in steps, above which a boundary is refined further;
            ``None``: ``model.zoom_threshold``.
        pre_nms_thresh: candidates need a class score above this.
        pre_nms_topk: best candidates kept per pyramid level; this and ``max_segments`` hold for every started 16,384 steps,
            so that hours of recording are not cut to what one video may have.
        duration_thresh: candidates need more than this length, in steps.
        nms: "soft" (Gaussian), "linear", "hard", "diou" (hard, by DIoU: neighbours with another centre are kept longer) or
            "none".
        multiclass: suppress each class on its own.
        max_segments: most detections of every started 16,384 steps; ``None``: training puts a number that follows the
            density of its annotations, at least 200.
        iou_threshold, min_score, sigma, voting_thresh, per_class_voting, vote_weight: of the suppression, see
            :func:`tzn.ops.batched_nms`.
        chunk: recordings longer than this many steps stream through in chunks with exact overlap.
    """

    section: ClassVar[str] = "inference"

    mode: Literal["refine", "pair", "anchor"] = "refine"
    estimator: Literal["vote_median", "vote_mean", "crossing"] = "vote_median"
    vote_window: Count = 4
    vote_correlation: Share = 1.0
    std_scale: Scales = (1.0, 1.0)
    min_slope: float = 0.5
    snap_sigmas: float = 3.0
    quality: float = 0.0
    budget: PositiveShare | None = None
    threshold: Positive | None = None
    pre_nms_thresh: float = 0.001
    pre_nms_topk: int = 2000
    duration_thresh: float = 0.05
    nms: Literal["soft", "linear", "hard", "diou", "none"] = "soft"
    multiclass: bool = True
    iou_threshold: float = 0.1
    min_score: float = 0.001
    max_segments: Count | None = None
    sigma: float = 0.5
    voting_thresh: float = 0.7
    per_class_voting: bool = False
    vote_weight: Literal["score_iou", "score"] = "score_iou"
    chunk: Chunk = 16384

    @property
    def segment_limit(self) -> int:
        """``max_segments``; where training has not put a number in its place, 200."""
        return self.max_segments or LEAST_SEGMENTS


@dataclass(frozen=True)
class EvaluationConfig(Checked):
    """What ``tzn eval`` reports.

    Attributes:
        tiou: tIoU thresholds of the average mAP.
        top_k: multiples x of Recall@kx.
        length_buckets: upper edges in seconds of the length buckets.
        short_classes: class names reported together as "short".
    """

    section: ClassVar[str] = "evaluation"

    tiou: tuple[PositiveShare, ...] = (0.3, 0.4, 0.5, 0.6, 0.7)
    top_k: tuple[Count, ...] = (1, 5)
    length_buckets: tuple[float, ...] = (2.0, 4.0, 8.0, 16.0)
    short_classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExperimentConfig:
    """Everything that defines a run. ``model.input_dim`` and ``model.num_classes`` must fit the data.

    In YAML the section ``model`` describes a TemporalZoomNet; the section ``actionformer`` in its place, an ActionFormer.
    """

    model: TemporalZoomNetConfig | ActionFormerConfig
    data: DataConfig = field(default_factory=DataConfig)
    front_end: FrontEndConfig = field(default_factory=FrontEndConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    @property
    def stored_dim(self) -> int:
        """Channels of the feature files, which the network may see pooled (``data.pool``).

        Raises:
            ConfigError: ``model.input_dim`` is no multiple of ``data.pool`` with flattened steps.
        """
        side_by_side = self.data.pool if self.data.pool_kind == "flatten" else 1
        if self.model.feature_dim % side_by_side:
            raise ConfigError(
                f"{self.model.section}.input_dim = {self.model.feature_dim}: expected a multiple of data.pool = "
                f"{side_by_side}, whose steps are side by side (data.pool_kind)"
            )
        return self.model.feature_dim // side_by_side
