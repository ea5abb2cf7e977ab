"""What the `adapter` block of a training configuration may say, one dataclass per family of methods. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from weft_registry.errors import InvalidInputError
from weft_registry.kinds.bottleneck import MAX_SIZE, NON_LINEARITIES, PLACES, READS
from weft_registry.kinds.low_rank import MAX_RANK
from weft_trainer.config.strict import ConfigError, given

ALL = "all"


@dataclass(frozen=True)
class LowRankOptions:
    """`method: qalora` (arXiv:2309.14717), and what all low-rank methods share."""

    r: int = field(default=8, metadata={"least": 1, "most": MAX_RANK})
    """The rank of B A."""
    alpha: float = field(default=16.0, metadata={"above": 0})
    """B A is scaled by alpha / r."""
    dropout: float = field(default=0.0, metadata={"least": 0, "most": 0.99})
    """Probability that an input of A is dropped in training."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(r) instead (arXiv:2312.03732)."""
    target_modules: tuple[str, ...] = (ALL,)
    """Linear modules to adapt: full names, their last parts ("q_proj"), or "all"."""
    layers: str | tuple[int, ...] = ALL
    """The layers adapted: "all", "top:8" (the last eight), or a list of indices. Where the lowest layers are left
    alone, their output is computed once per example and kept: steps become several times cheaper."""
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    """Ranks other than `r`, by full name or last part; a full name decides over a last part."""
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    """Alphas other than `alpha`, likewise."""

    def __post_init__(self) -> None:
        for name, rank in self.rank_pattern.items():
            if not 1 <= rank <= MAX_RANK:
                raise ConfigError(f"adapter.rank_pattern.{name}", f"{rank}; a rank is from 1 to {MAX_RANK}")
        for name, alpha in self.alpha_pattern.items():
            if alpha <= 0:
                raise ConfigError(f"adapter.alpha_pattern.{name}", f"{alpha}, but it must be above 0")


@dataclass(frozen=True)
class LoraOptions(LowRankOptions):
    """`method: lora` (arXiv:2106.09685) and `method: dora` (arXiv:2402.09353)."""

    init: str = field(default="default", metadata={"choices": ("default", "gaussian", "pissa", "olora", "loftq")})
    """The first A and B. "default": A uniform, B zero; "gaussian": A normal with standard deviation 1 / r, B zero.
    "pissa" (arXiv:2404.02948): the r largest singular vectors of the weight; "olora" (arXiv:2406.01775): the first r of
    its QR decomposition; both are taken out of the delta again, so that training starts at the base, and the artifact
    has twice the rank. "loftq" (arXiv:2310.08659): the r largest singular vectors of what quantization lost, so that
    training starts nearer to the original than the base is."""
    original: Path | None = None
    """For `init: loftq`: the Hugging Face directory in float from which the base was quantized."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init == "loftq" and self.original is None:
            raise InvalidInputError(
                "adapter.init: loftq starts from what quantization lost, and a stored base does not have it: give the "
                "float model's directory as adapter.original, or take another init"
            )
        if self.init != "loftq" and self.original is not None:
            raise InvalidInputError(f"adapter.original: without effect on adapter.init: {self.init}; leave it out")


@dataclass(frozen=True)
class QLoraOptions(LoraOptions):
    """`method: qlora` (arXiv:2305.14314): LoRA trained through a 4-bit base."""

    quantization: str = field(default="int4", metadata={"choices": ("int4", "nf4")})
    """What the base is while training. "int4": as it is stored and served. "nf4": its adapted layers in the paper's
    4-bit NormalFloat with double quantization, by bitsandbytes; the artifact is served over the int4 base all the same,
    which rounds otherwise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.quantization == "nf4" and self.init == "loftq":
            raise InvalidInputError(
                "adapter.init: loftq makes up for what int4 lost, which nf4 did not lose: take quantization: int4"
            )


@dataclass(frozen=True)
class Ia3Options:
    """`method: ia3` (arXiv:2205.05638): a learned factor for every element of an activation."""

    target_modules: tuple[str, ...] = ("k_proj", "v_proj", "down_proj")
    """Linear modules to adapt: full names, their last parts, or "all". The default is the paper's: keys, values, and
    the inner activations of the MLP."""
    feedforward_modules: tuple[str, ...] | None = None
    """Those of them whose INPUT is scaled, as `target_modules`; only o_proj and down_proj have an input of their own.
    None: every down_proj among them. Of the others the output is scaled."""
    layers: str | tuple[int, ...] = ALL
    """The layers adapted: "all", "top:8" (the last eight), or a list of indices."""


@dataclass(frozen=True)
class PrefixOptions:
    """`method: prefix` (arXiv:2101.00190): trained keys and values before every layer's own."""

    num_virtual_tokens: int | None = field(default=None, metadata={"least": 1, "most": 1 << 16})
    """Length of the prefix. With `init_text` it may be left out (the text's own length) or exceed it (the text is
    repeated). Without `init_text`: 16."""
    init_text: str | None = None
    """A text whose keys and values in the base are the prefix's first values (section 7.4 of the paper: real words
    start better than noise). Training begins at the base that has just read this text."""
    prefix_projection: bool = False
    """Train the prefix through PEFT's two-layer MLP (section 4.3 of the paper); not together with `init_text`."""
    encoder_hidden_size: int | None = field(default=None, metadata={"least": 1})
    """Width of that MLP; None means the prefix's own width per layer."""
    init_scale: float = field(default=0.1, metadata={"above": 0})
    """Standard deviation of the random start, without `init_text` and without `prefix_projection`."""

    def __post_init__(self) -> None:
        if self.encoder_hidden_size is not None and not self.prefix_projection:
            raise ConfigError(
                "adapter.encoder_hidden_size",
                "without effect: it is the width of the MLP that adapter.prefix_projection: true trains; give that "
                "too, or leave it out",
            )
        if self.prefix_projection and self.init_text is not None:
            raise ConfigError(
                "adapter.init_text",
                "an MLP (adapter.prefix_projection) decides the prefix, so it cannot start at the keys and values of a "
                "text; give one of the two",
            )
        for name in ("init_text", "prefix_projection"):
            if given(self, "init_scale") and given(self, name):
                raise ConfigError(
                    "adapter.init_scale", f"without effect: adapter.{name} decides the first values; leave it out"
                )


@dataclass(frozen=True)
class PromptOptions:
    """`method: prompt_tuning` (arXiv:2104.08691): trained embeddings before the text's own."""

    num_virtual_tokens: int | None = field(default=None, metadata={"least": 1, "most": 1 << 16})
    """Length of the prompt. With `init_text` it may be left out (the text's own length) or exceed it (the text is
    repeated). Without `init_text`: 20, beyond which the paper gains little (section 3.2)."""
    init_text: str | None = None
    """A text whose tokens' embeddings are the first values, so that training begins at the base that reads this text
    first. The names of the answers, or a sentence that says the task."""
    init: str | None = field(default=None, metadata={"choices": ("vocabulary", "random")})
    """The first values without `init_text`. "vocabulary", the default: the embeddings of tokens drawn from the
    `init_vocabulary` first ones. "random": normal, with the spread of the base's own embeddings."""
    init_vocabulary: int | None = field(default=None, metadata={"least": 1})
    """How many tokens `init: vocabulary` draws from: the lowest ids, which a tokenizer gives to its most common tokens.
    None: 5000, as in the paper."""

    def __post_init__(self) -> None:
        if self.init_text is not None and self.init is not None:
            raise ConfigError("adapter.init", "adapter.init_text decides the first values; give one of the two")
        if self.init_vocabulary is not None and (self.init_text is not None or self.init == "random"):
            raise ConfigError("adapter.init_vocabulary", "only adapter.init: vocabulary draws tokens; leave it out")


@dataclass(frozen=True)
class PTuningOptions:
    """`method: p_tuning` (arXiv:2103.10385): embeddings before the text's own, computed by a trained encoder."""

    num_virtual_tokens: int = field(default=20, metadata={"least": 1, "most": 1 << 16})
    """Length of the prompt."""
    encoder: str = field(default="mlp", metadata={"choices": ("mlp", "lstm")})
    """What computes the prompt from a trained input for each virtual token. "lstm": a bidirectional LSTM and two linear
    layers, so that neighbours depend on each other (the paper's prompt encoder). "mlp": three linear layers."""
    encoder_hidden_size: int | None = field(default=None, metadata={"least": 1})
    """Width of the encoder; None means the base's hidden size."""
    encoder_num_layers: int | None = field(default=None, metadata={"least": 1})
    """Layers of the LSTM; None means 2. The MLP has always three linear layers."""
    encoder_dropout: float = field(default=0.0, metadata={"least": 0, "most": 0.99})
    """Probability that a value between two layers of the LSTM is dropped in training."""

    def __post_init__(self) -> None:
        if self.encoder == "mlp":
            for name in ("encoder_num_layers", "encoder_dropout"):
                if getattr(self, name):
                    raise ConfigError(f"adapter.{name}", "without effect on adapter.encoder: mlp; leave it out")
        elif self.encoder_num_layers == 1 and self.encoder_dropout:
            raise ConfigError("adapter.encoder_dropout", "it acts between layers, and there is one")


@dataclass(frozen=True)
class PTuningV2Options:
    """`method: p_tuning_v2` (arXiv:2110.07602): keys and values before every layer's own, trained as they are."""

    num_virtual_tokens: int = field(default=20, metadata={"least": 1, "most": 1 << 16})
    """Length of the prefix. What is best depends on the task (section 3.3 of the paper): below 20 for simple
    classification, about 100 for hard tasks such as labelling sequences."""
    dropout: float = field(default=0.0, metadata={"least": 0, "most": 0.99})
    """Probability that a key's or value's number is dropped in training, as in the paper's code."""
    init_scale: float = field(default=0.1, metadata={"above": 0})
    """Standard deviation of the random start."""


@dataclass(frozen=True)
class ExtractOptions:
    """How trained weights become a LoRA: the truncated singular value decomposition of what training changed."""

    rank: int | None = field(default=None, metadata={"least": 1, "most": MAX_RANK})
    """The highest rank at every module. Without `rank` and `energy`: 16."""
    energy: float | None = field(default=None, metadata={"above": 0, "most": 1})
    """Instead of a rank: the share of each change's squared norm to keep; ranks then differ from module to module."""

    def __post_init__(self) -> None:
        if self.rank is not None and self.energy is not None:
            raise ConfigError("adapter.extract.energy", "adapter.extract.rank decides the ranks; give one of the two")


@dataclass(frozen=True)
class FullOptions:
    """`method: full` and `method: partial`: weights of the base themselves are trained, on a float copy of it."""

    unfreeze: tuple[str, ...] = ()
    """What is trained: patterns (`*` and `?`) over the names of weights and of modules, such as "model.layers.28.*" or
    "*.mlp.*". Needed by partial; of full, the default is everything that a LoRA can carry: the linears, and the norms
    before attention and MLP."""
    freeze: tuple[str, ...] = ()
    """Patterns of what is not trained, of that."""
    extract: ExtractOptions = field(default_factory=ExtractOptions)
    """How the adapter is made of what was trained."""
    ignore_rest: bool = False
    """Also train weights that no LoRA can carry (embeddings, head, last norm, biases), and leave what they learn out of
    the adapter. Without it such a pattern is refused."""
    save_model: bool = False
    """Also write the whole trained model, as a transformers directory, to OUTPUT.model: what `weft extract` takes."""


@dataclass(frozen=True)
class GaLoreOptions(FullOptions):
    """`method: galore` (arXiv:2403.03507): full training whose optimizer keeps its moments in a low-rank space."""

    rank: int = field(default=128, metadata={"least": 1})
    """Rank of the space that gradients are projected to. Weights with no more rows or columns are trained as they
    are."""
    update_proj_gap: int = field(default=200, metadata={"least": 1})
    """Steps after which the space is chosen again, from the gradient of that step."""
    scale: float = field(default=0.25, metadata={"above": 0})
    """What the projected update is multiplied by (alpha in the paper)."""


@dataclass(frozen=True)
class BottleneckOptions:
    """`method: houlsby` (arXiv:1902.00751), `method: pfeiffer` (arXiv:2005.00052) and `method: parallel`
    (arXiv:2110.04366): small networks at the ends of sublayers. What is left out is as the method has it."""

    reduction_factor: float | None = field(default=None, metadata={"above": 0})
    """The hidden size divided by the bottleneck's. None: 16 for houlsby and pfeiffer, 2 for parallel."""
    bottleneck_size: int | None = field(default=None, metadata={"least": 1, "most": MAX_SIZE})
    """The bottleneck itself, instead of `reduction_factor`."""
    non_linearity: str | None = field(default=None, metadata={"choices": NON_LINEARITIES})
    """By AdapterHub's names. None: swish for houlsby, relu for the others."""
    scaling: float | None = field(default=None)
    """What the network's output is multiplied by. None: 4 for parallel, 1 for the others."""
    places: tuple[str, ...] = ()
    """The sublayers: "attention", "mlp" or both. Empty: both for houlsby, mlp for the others."""
    reads: str | None = field(default=None, metadata={"choices": READS})
    """What the network reads. None: `output` (the sublayer's output) for houlsby, `sum` (the residual stream with that
    output in it) for pfeiffer, `residual` (the stream before the sublayer) for parallel; `input` is the stream before
    the sublayer after its norm, which is what the sublayer itself reads."""
    layers: str | tuple[int, ...] = ALL
    """The layers that have it: "all", "top:8", or a list of indices. Lower ones are computed once per example."""
    leave_out: tuple[int, ...] = ()
    """Layers that have none, of those that `layers` means."""
    dropout: float = field(default=0.0, metadata={"least": 0, "most": 0.99})
    """Probability that a number of the network's output is dropped in training."""
    stack_on: tuple[str, ...] = ()
    """Bottleneck adapters that lie frozen below this one at every sublayer, the lowest first: references
    ("acme/german:v1"), or "NAMESPACE/NAME=DIRECTORY" for an artifact directory and the name that it will be pushed
    under. MAD-X trains a task adapter on the adapter of a language so, and serves it on another's."""

    def __post_init__(self) -> None:
        if self.reduction_factor is not None and self.bottleneck_size is not None:
            raise ConfigError("adapter.bottleneck_size", "adapter.reduction_factor says the same; give one of the two")
        if self.scaling == 0:
            raise ConfigError("adapter.scaling", "0 leaves nothing of what is trained; take another number")
        unknown = [place for place in self.places if place not in PLACES]
        if unknown:
            raise ConfigError("adapter.places", f"{unknown[0]!r} is not one of {', '.join(PLACES)}")


@dataclass(frozen=True)
class FusionOptions:
    """`method: fusion` (AdapterFusion, arXiv:2005.00247): an attention over trained bottleneck adapters."""

    parts: tuple[str, ...]
    """The adapters to fuse, in order: references ("acme/topics:v1"), or "NAMESPACE/NAME=DIRECTORY" for an artifact
    directory and the name that it will be pushed under. All stand at the same sublayers and read the same."""
    value: bool = True
    """Whether there is a value matrix (AdapterHub's "dynamic" fusion) or none ("static")."""
    regularization: float = field(default=0.01, metadata={"least": 0})
    """Weight of the value matrices' squared distance from the identity in the loss (section 3.2.2 of the paper)."""

    def __post_init__(self) -> None:
        if not self.value and given(self, "regularization"):
            raise ConfigError(
                "adapter.regularization",
                "without effect: it draws the value matrices to the identity, and adapter.value: false has none; leave "
                "it out",
            )
