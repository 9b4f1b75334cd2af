"""What is trained on a data set and how it is judged: no part of what the data set is."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.recipe.base import Strict

#: Encoders that can be built (`pipeline.pretrain.encoders.backbones`), and what may stand before.
BACKBONES = (
    *("resnet18", "resnet34", "resnet50", "resnet101"),
    *("vit_tiny", "vit_small", "vit_base", "vit_large"),
)
BEFORE_BACKBONE = ("spec_", "wave_")

#: What a method trains with unless the recipe says otherwise, where that is not the field's own
#: default: as its paper or, where there is one, its first use on satellite images does; where not,
#: `docs/pretraining.md` says why. `learning_rate` is for 256 items and grows with the batch (Goyal
#: et al. 2017, arXiv 1706.02677); `warmup` is a share of the steps.
USUAL: dict[str, dict[str, Any]] = {
    # He et al. 2020; SSL4EO-S12 (arXiv 2211.07044)
    "moco": {"optimizer": "sgd", "learning_rate": 0.03, "weight_decay": 1e-4},
    # Chen, Xie and He 2021 (arXiv 2104.02057); SSL4EO-S12
    "mocov3": {"learning_rate": 1.5e-4, "weight_decay": 0.1, "warmup": 0.1, "projector_width": 4096}
    | {"teacher_momentum": 0.99},
    # Chen et al. 2020 (arXiv 2002.05709)
    "simclr": {"optimizer": "lars", "learning_rate": 0.3, "weight_decay": 1e-6, "warmup": 0.1}
    | {"temperature": 0.1},
    # Chen and He 2021 (arXiv 2011.10566)
    "simsiam": {"optimizer": "sgd", "learning_rate": 0.05, "weight_decay": 1e-4},
    # Caron et al. 2020 (arXiv 2006.09882); prototypes, queue and rate as for BigEarthNet by Wang et
    # al. 2022 (arXiv 2206.13188)
    "swav": {"optimizer": "lars", "learning_rate": 0.3, "weight_decay": 1e-6, "warmup": 0.1}
    | {"temperature": 0.1, "prototypes": 500, "queue": 1280, "local_crops": 6},
    # Zbontar et al. 2021 (arXiv 2103.03230) and its code; the warm-up as for BigEarthNet by Wang et
    # al. 2022
    "barlow": {"optimizer": "lars", "learning_rate": 0.2, "weight_decay": 1e-6, "warmup": 0.1},
    # Caron et al. 2021 (arXiv 2104.14294); rate as in SSL4EO-S12
    "dino": {"learning_rate": 1.5e-4, "weight_decay": 0.04, "weight_decay_end": 0.4}
    | {"warmup": 0.1, "clip": 3.0, "drop_path": 0.1},
    # He et al. 2022 (arXiv 2111.06377)
    "mae": {"learning_rate": 1.5e-4, "weight_decay": 0.05, "warmup": 0.1},
    # Baevski et al. 2022 (arXiv 2202.03555); SSL4EO-S12
    "data2vec": {"learning_rate": 1e-3, "weight_decay": 0.05, "warmup": 0.1, "clip": 3.0}
    | {"drop_path": 0.25, "teacher_momentum": 0.999, "mask_fraction": 0.6},
    # Wang et al. 2024 (arXiv 2309.05300), which trains as Barlow Twins does
    "decur": {"optimizer": "lars", "learning_rate": 0.2, "weight_decay": 1e-6, "warmup": 0.1}
    | {"pairs": "products"},
    # Assran et al. 2021 (arXiv 2104.13963): 6.4 for 4096 items
    "paws": {"optimizer": "lars", "learning_rate": 0.4, "weight_decay": 1e-6, "warmup": 0.1}
    | {"temperature": 0.1, "local_crops": 6},
    # Braham et al. 2022 (arXiv 2206.12117) publish none
    "barlow_pixels": {},
}

#: The same with another optimiser than the method's own, where that is published. SSL4EO-L's SimCLR
#: is not here: it ran Adam at a rate meant for LARS.
OTHERWISE: dict[tuple[str, str], dict[str, Any]] = {
    # SSL4EO-S12's and DINO's own ResNet-50
    ("dino", "sgd"): {"learning_rate": 0.03, "weight_decay": 1e-4},
    # The ResNet-50 of the paper, 300 epochs (CONFIG.md of its code)
    ("mocov3", "lars"): {"learning_rate": 0.3, "weight_decay": 1e-6},
    # The released script for GeoNRW
    ("decur", "adamw"): {"learning_rate": 1e-4, "weight_decay": 0.01},
}
OPTIMIZERS = ("adamw", "sgd", "lars")
#: What is worth something under one optimiser alone.
TIED = ("learning_rate", "weight_decay", "weight_decay_end")


class Weights(Strict):
    """An encoder that others released, in a file on this machine."""

    path: str
    """Relative to the recipe: safetensors, or what `torch.save` wrote if it holds weights alone."""
    layout: str
    """Whose: a key of `pipeline.pretrain.encoders.released.LAYOUTS`, such as `ssl4eo-s12-moco`. It
    tells the names and order of the bands, and the values that the encoder saw as 0 and 1."""


class Intensity(Strict):
    """Random changes of physical values, for images of few bands; nothing is changed by default.

    They are made after crop and blur, before standardisation, of what was seen, and clip nothing.
    """

    brightness: float = Field(default=0.0, ge=0, lt=1)
    """An image is multiplied by 1 - this to 1 + this: 0.4 in SSL4EO-S12 and DeCUR. To decibels the
    gain is added; temperatures are counted from 248.15 K, as in SSL4EO-L."""
    contrast: float = Field(default=0.0, ge=0, lt=1)
    """Distances from each band's mean in the image are multiplied so: 0.4 there."""
    probability: float = Field(default=0.8, ge=0, le=1)
    """Of brightness and contrast: an image has both or neither."""
    grey: float = Field(default=0.0, ge=0, le=1)
    """Probability that all bands of a unit become their mean: 0.2 there."""
    solarise: float = Field(default=0.0, ge=0, le=1)
    """Probability that what is above its band's mean is mirrored at it, in the second view of a
    pair alone: 0.2 for DINO in SSL4EO-S12, for Barlow Twins, and for DeCUR."""
    drop_bands: int = Field(default=0, ge=0)
    """One band, up to so many, count as never seen: 6 in a variant of Wang et al. 2022 (arXiv
    2206.13188)."""
    drop_probability: float = Field(default=0.5, ge=0, le=1)
    """That any band is left out."""

    @property
    def changes(self) -> bool:
        """Whether there is anything to change."""
        strengths = (self.brightness, self.contrast, self.grey, self.solarise, self.drop_bands)
        return any(strengths)


class Pretrain(Strict):
    """One pretraining run on a published version."""

    method: Literal[
        "moco",
        "mae",
        "barlow",
        "dino",
        "decur",
        "paws",
        "barlow_pixels",
        "mocov3",
        "simclr",
        "simsiam",
        "swav",
        "data2vec",
    ] = "moco"
    backbone: str = "resnet18"
    """A timm ResNet or ViT: resnet18, resnet34, resnet50, resnet101, vit_tiny, vit_small, vit_base,
    vit_large. With `spec_` before it (spec_resnet50, spec_vit_small), behind SpectralEarth's
    spectral adapter, for 75 bands or more. With `wave_` before it, an encoder of any sensor, whose
    first convolution goes by the wavelengths of the bands (after DOFA)."""
    product: str | None = None
    """Whose patches are learned from; None: the recipe's first image product."""
    more_products: tuple[str, ...] = ()
    """Other products that are learned from beside it: batches of one product each for a backbone of
    any sensor (`wave_`), or the other half of every pair (`pairs = "products"`)."""
    pairs: Literal["times", "views", "products"] = "times"
    """What a method that compares two patches is given: two times of a location (the same patch
    twice where there is but one), two crops of one patch, or two products at one slot."""
    joint: bool = False
    """Show a backbone of any sensor (`wave_`) all products of a location and slot in one image, on
    the pixels of `product`, instead of batches of one product each."""
    modality_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Joint images: probability that a view lacks products: a part of them is drawn, each part but
    all and none equally often (of two, one), and the others count as never seen. 0.5 in AV-HuBERT
    (Shi et al. 2022, arXiv 2201.02184); the idea is of Neverova et al. 2015 (arXiv 1501.00102)."""
    weights: Weights | None = None
    """Weights to begin with, instead of random ones. Bands go by name, and images are brought to
    the values that these weights were trained on, where their layout states them."""
    steps: int = Field(default=1000, ge=0)
    """0: take `weights` as they are."""
    batch_size: int = Field(default=64, ge=2)
    """Items a step learns from, over all devices."""
    accumulate: int = Field(default=1, ge=1)
    """Parts a device takes its share of a batch in, one after another, where memory is short. A
    method that compares the items of a batch compares those of a part."""
    crop_px: int | None = Field(default=None, ge=1)
    """Edge of the training crops; None: the whole patch."""
    crop_area: tuple[float, float] | None = None
    """Least and largest share of a patch that a crop shows; [1.0, 1.0]: the whole patch. None: 0.2
    to 1 (SSL4EO-S12); DINO, SwAV and PAWS: of the large crops, from 0.14 for a ResNet and 0.4 for a
    ViT, and small ones are no larger than the least large one."""
    blur: float | None = Field(default=None, ge=0, le=1)
    """Probability that a view is blurred; None: 0.5, for DINO's large crops 1 and 0.1, for MAE and
    data2vec 0."""
    intensity: Intensity = Intensity()
    """What else is changed in a view."""
    intensity_of: dict[str, Intensity] = Field(default_factory=dict)
    """By product, in place of `intensity`: decibels and reflectance want other changes."""
    patch_px: int = Field(default=4, ge=1)
    """Token edge of a ViT."""
    optimizer: Literal["adamw", "sgd", "lars"] = "adamw"
    """Default: the method's own: SGD for MoCo and SimSiam, LARS for SimCLR, SwAV, Barlow Twins,
    DeCUR and PAWS. Another one needs a `learning_rate` with it, but for those that are published:
    SGD for DINO, LARS for MoCo v3, AdamW for DeCUR."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Highest, after the warm-up. Default: the method's own, times batch_size / 256."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """At first. Default: the method's own, with its own optimiser. LARS and SGD take it for the
    gradient's, AdamW does not."""
    weight_decay_end: float | None = Field(default=None, ge=0)
    """At the end of a cosine over all steps; None: as at first. Default: 0.4 for DINO
    with AdamW."""
    warmup_steps: int = Field(default=0, ge=0)
    """Default: a tenth of the steps for all but MoCo, SimSiam and Barlow Twins on pixels."""
    clip: float | None = Field(default=None, gt=0)
    """Longest gradient; None: any. Default: 3 for DINO and data2vec (SSL4EO-S12)."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Probability that the last block of a ViT is left out for an item, less for earlier ones.
    Default: 0.1 for DINO's student, 0.25 for data2vec's (SSL4EO-S12)."""
    momentum: float = Field(default=0.999, ge=0, lt=1)
    """MoCo: of the key encoder (He et al. 2020)."""
    temperature: float = Field(default=0.2, gt=0)
    """MoCo v2 and v3, SimCLR, SwAV, PAWS: of the logits. 0.1 for the last three."""
    key_parts: int = Field(default=1, ge=1)
    """MoCo, on a backbone with batch norm: random parts of a batch that pass through the key
    encoder one by one, so that a key's moments are not its query's: the shuffled batch norm that
    the paper and SSL4EO-S12 (on 4 GPUs) have by their devices."""
    queue: int = Field(default=4096, ge=2)
    """MoCo: keys remembered. SwAV: projections of either view remembered, 1280."""
    mask_fraction: float = Field(default=0.75, gt=0, lt=1)
    """MAE: share of hidden tokens (He et al. 2022); SpectralEarth used 0.9. data2vec: 0.6."""
    decoder_width: int = Field(default=256, ge=4)
    """MAE: of the decoder's tokens, a multiple of 4 and of its heads; 512 in the paper, SSL4EO-S12
    and SpectralEarth."""
    decoder_blocks: int = Field(default=4, ge=1)
    """MAE: 8 in the paper and SSL4EO-S12, 1 in SpectralEarth."""
    decoder_heads: int = Field(default=8, ge=1)
    """MAE: 16 in the paper, SSL4EO-S12 and SpectralEarth."""
    projector_width: int = Field(default=2048, ge=2)
    """Barlow Twins, DeCUR: of each of the projector's three layers; 8192 in the papers, 2048 for
    BigEarthNet and So2Sat (Wang et al. 2022, arXiv 2206.13188). Others: of the hidden layers."""
    off_diagonal: float = Field(default=0.0051, gt=0)
    """Barlow Twins, DeCUR: lambda, the weight of correlations between dimensions (Zbontar et al.
    2021)."""
    common_fraction: float = Field(default=0.875, gt=0, lt=1)
    """DeCUR: share of dimensions that both modalities have in common; 0.875 for SAR and optical,
    0.75 for RGB and elevation (Wang et al. 2024)."""
    prototypes: int = Field(default=4096, ge=2)
    """DINO: what it tells apart; 65536 in the paper (Caron et al. 2021) and SSL4EO-S12, 128 in
    SpectralEarth. SwAV: 500."""
    teacher_momentum: float = Field(default=0.996, ge=0, le=1)
    """DINO: of the teacher at first; it rises to 1 on a cosine over all steps (Caron et al. 2021).
    A run of a few hundred steps needs less, or its teacher hardly moves. MoCo v3: 0.99; data2vec:
    0.999, rising to 0.9998."""
    student_temperature: float = Field(default=0.1, gt=0)
    """DINO: of the student's logits (Caron et al. 2021)."""
    teacher_temperature: float = Field(default=0.04, gt=0)
    """DINO: of the teacher's logits, after its warm-up (the paper's code and SSL4EO-S12)."""
    teacher_temperature_start: float = Field(default=0.04, gt=0)
    """DINO: of the teacher's logits at first (Caron et al. 2021)."""
    teacher_warmup_steps: int = Field(default=0, ge=0)
    """DINO: steps from the teacher's first temperature to its last (0 as in SSL4EO-S12)."""
    centre_momentum: float = Field(default=0.9, ge=0, lt=1)
    """DINO: of the centre of the teacher's logits (Caron et al. 2021)."""
    frozen_fraction: float = Field(default=0.01, ge=0, le=1)
    """DINO, SwAV: share of the run in which the prototypes stand still; 1 epoch of 100 in
    SSL4EO-S12."""
    local_crops: int = Field(default=8, ge=0)
    """DINO, SwAV, PAWS: small crops beside the two large ones: 8 (SSL4EO-S12), 6 and 6."""
    local_px: int | None = Field(default=None, ge=2)
    """Edge of the small crops; None: 3/7 of that of the large ones (96 of 224), in whole tokens."""
    windows: int = Field(default=16, ge=1)
    """Barlow Twins on pixels: windows of `crop_px` (1: single pixels) drawn from each patch."""
    support_per_class: int = Field(default=4, ge=1)
    """PAWS: labelled patches of each class that a step sees."""
    support_known: int | None = Field(default=None, ge=1)
    """PAWS: labelled patches of each class of the training part that the run knows at all, drawn by
    its seed; None: all. With 10, say, `evaluate` shows what 10 labels a class are enough for."""
    support_labels: str | None = None
    """PAWS: label product; None: `evaluate.labels`. Only the training part's are read."""
    health_every: int = Field(default=10, ge=1)
    """Steps between two lines of the log."""
    knn_every: int = Field(default=0, ge=0)
    """Steps between two looks at what features are worth, by nearest neighbours on the validation
    part of `evaluate.labels`; 0: never."""
    stop_collapsed: bool = True
    """End a run that has collapsed or diverged, instead of warning alone."""
    seed: int = 0
    checkpoint_every: int = Field(default=500, ge=1)
    """Steps between checkpoints."""
    transductive: bool = False
    """Learn from all splits, not from `train` alone; every report then says so."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the networks; losses are always in float32. `auto`: bfloat16 on a GPU that has units for
    it, float32 elsewhere."""
    compile: bool = False
    """Let torch compile the encoder, which takes minutes once and makes later steps faster. Needs
    the compiler that torch needs (Triton on a GPU, C++ on a CPU)."""
    threads: int = Field(default=2, ge=1)
    """Decoding threads of the loader."""
    requests: int = Field(default=64, ge=1, le=1024)
    """Requests to a bucket that the loader waits for at a time."""

    @model_validator(mode="before")
    @classmethod
    def _as_usual(cls, given: Any) -> Any:
        """Fill in what the method trains with where the recipe does not say."""
        if not isinstance(given, dict):
            return given
        method = str(given.get("method", "moco"))
        usual = dict(USUAL.get(method, {}))
        own = usual.get("optimizer", cls.model_fields["optimizer"].default)
        if (asked := given.get("optimizer", own)) != own:
            other = OTHERWISE.get((method, str(asked)), {})
            known = method in USUAL and asked in OPTIMIZERS
            if known and not other and "learning_rate" not in given:
                raise ValueError(
                    f"`optimizer` is {asked!r}, and for `{method}` no `learning_rate` is published "
                    f"with it; write one, or leave `optimizer` at {own!r}"
                )
            usual = {key: value for key, value in usual.items() if key not in TIED} | other
        share = usual.pop("warmup", 0.0)
        if isinstance(steps := given.get("steps", 1000), int):
            usual["warmup_steps"] = round(share * steps)
        if isinstance(batch := given.get("batch_size", 64), int) and "learning_rate" in usual:
            usual["learning_rate"] *= batch / 256
        return {**usual, **given}

    @model_validator(mode="after")
    def _divided(self) -> Pretrain:
        if self.batch_size % self.accumulate or self.batch_size < 2 * self.accumulate:
            raise ValueError(
                f"`accumulate` is {self.accumulate}, which does not part a batch of "
                f"{self.batch_size} into equal parts of at least 2 items"
            )
        return self

    @model_validator(mode="after")
    def _viewed(self) -> Pretrain:
        intensities = (self.intensity, *self.intensity_of.values())
        if self.joint and self.intensity_of:
            raise ValueError(
                "`intensity_of` is for images of one product each; with `joint` an image shows "
                "several, and `intensity` is of all"
            )
        cut = self.crop_area is not None or self.blur is not None
        asked = cut or any(one.changes for one in intensities)
        if asked and self.method == "barlow_pixels":
            raise ValueError(
                "`crop_area`, `blur` and `intensity` are not for `barlow_pixels`, which cuts and "
                "changes its windows in its own way; leave them out"
            )
        solarised = max(one.solarise for one in intensities)
        if solarised and self.method in ("mae", "data2vec"):
            raise ValueError(
                f"`intensity.solarise` is {solarised}, which changes the second view "
                f"of a pair, and `{self.method}` has one view; leave it out"
            )
        return self

    @field_validator("crop_area")
    @classmethod
    def _shares(cls, area: tuple[float, float] | None) -> tuple[float, float] | None:
        if area is not None and not 0 < area[0] <= area[1] <= 1:
            raise ValueError(
                f"is {list(area)}; it takes a least and a largest share of the patch, above 0 and "
                "up to 1, such as [0.2, 1.0]"
            )
        return area

    @model_validator(mode="after")
    def _decoded(self) -> Pretrain:
        if self.decoder_width % 4 or self.decoder_width % self.decoder_heads:
            raise ValueError(
                f"`decoder_width` is {self.decoder_width}, which must be a multiple of 4 and of "
                f"`decoder_heads`, {self.decoder_heads}"
            )
        return self

    @model_validator(mode="after")
    def _taught(self) -> Pretrain:
        if self.steps == 0 and self.weights is None:
            raise ValueError("`steps` is 0, which takes `weights` as they are, but there are none")
        return self

    @field_validator("backbone")
    @classmethod
    def _known_backbone(cls, name: str) -> str:
        bare = next((name.removeprefix(b) for b in BEFORE_BACKBONE if name.startswith(b)), name)
        if bare not in BACKBONES:
            raise ValueError(
                f"is {name!r}; allowed are: {', '.join(BACKBONES)}, each also with "
                f"{' or '.join(BEFORE_BACKBONE)} before it"
            )
        return name


class Evaluate(Strict):
    """Probes of frozen features against labels, beside baselines on the same split."""

    labels: str
    """Label product of the same recipe."""
    product: str | None = None
    """Image product whose windows are classified; None: the model's own. Another one that the model
    was trained on has its own standardisation; to a backbone of any sensor it may be new."""
    window_px: int | None = Field(default=None, ge=1)
    """Edge of the classified windows in pixels of the image product; None: the whole patch."""
    task: Literal["classes", "multi-label"] = "classes"
    """What is said of a window: its majority class, or the set of class groups that it holds (the
    label product's `groups`; without them, its classes)."""
    min_label_fraction: float = Field(default=0.5, ge=0, le=1)
    """Least share of a window that its majority label must cover; `multi-label`: that must be
    labelled."""
    min_group_fraction: float = Field(default=0.0, ge=0, le=1)
    """`multi-label`: share of a window that a group must cover to be held; 0: one pixel is enough,
    as for BigEarthNet and SpectralEarth."""
    knn: int = Field(default=5, ge=1)
    """Neighbours of the kNN probe (cosine, torchgeo-bench uses 5)."""
    few_labels: int | None = Field(default=None, ge=1)
    """Labelled windows of each class for classification with few labels; None: those that PAWS
    knew (`pretrain.support_known`), and no such classification for other methods."""
    fine_tune_steps: int = Field(default=0, ge=0)
    """Steps in which the encoder, and the untrained one, are fine-tuned on them; 0: not."""
    seed: int = 0

    @model_validator(mode="after")
    def _of_one_class(self) -> Evaluate:
        if self.task == "multi-label" and (self.few_labels or self.fine_tune_steps):
            raise ValueError(
                "`few_labels` and `fine_tune_steps` are of windows with one class each; leave them "
                'out of `task = "multi-label"`'
            )
        return self
