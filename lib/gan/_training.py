"""Training a generator against a critic for as long as it takes (slides 37 to 41).

    train_wgan    ``min_x max_y E d_y(a) − E d_y(h_x(ω))``, d_y 1-Lipschitz      slides 37, 39, 40
    train_gan     ``min_x max_y E log σ(d_y(a)) + E log(1 − σ(d_y(h_x(ω))))``    slide 41

Both repeat slide 40's rounds, ``training_round``. The networks are the caller's.
"""

from __future__ import annotations

from typing import Unpack

from torch import Tensor, nn

from lib.gan._checks import OptimizerOf
from lib.gan._networks import Noise
from lib.gan._objectives import gan_objective, wgan_objective
from lib.gan._run import History, Run
from lib.gan._settings import RunSettings
from lib.lipschitz import normalize_spectrally_


def train_wgan(
    generator: nn.Module,
    critic: nn.Module,
    real: Tensor,
    noise: Noise,
    constraint: str = "penalty",
    *,
    steps: int,
    critic_steps: int = 5,
    batch_size: int = 128,
    clip: float = 0.01,
    penalty: float = 10.0,
    one_sided: bool = False,
    generator_optimizer: OptimizerOf | None = None,
    critic_optimizer: OptimizerOf | None = None,
    **settings: Unpack[RunSettings],
) -> History:
    """``min_x max_y E d_y(a) − E d_y(h_x(ω))``, d_y held near 1-Lipschitz (slides 37, 39, 40).

    ``steps`` (T) steps of the generator, before each ``critic_steps`` (M) of the critic.
    generator: noise [n, ...] -> samples [n, ...]. critic: samples -> [n] or [n, 1], each for
    itself: real and fake ones come in one batch. real: floats [N, ...], samples of the target,
    from which batches are drawn with replacement. noise: (n, generator=None) -> [n, ...], called
    with a generator on the CPU. batch_size: K and B, of each kind.
    constraint, clip, penalty, one_sided: as in ``wgan_objective``; "spectral" divides each layer
    of the critic by its norm from the start on and after the training.
    generator_optimizer, critic_optimizer: parameters -> optimizer, or one that has them already;
    None: Adam with lr 1e-3. settings: how the run is scored, kept and computed, ``RunSettings``.
    Under torchrun each process takes its share of every batch (lib.runs.processes).

    Returns the history: "value" [steps], V on the critic's last batch before each generator
    step; and for each score "step", the generator steps done, "samples", a tensor, and "w1", the
    exact W1 between them and the target, both flattened. Both networks end in evaluation mode.
    Raises ValueError for what does not fit; CheckpointError for a checkpoint that is damaged or of
    another run; and FloatingPointError as soon as V, ℓ or a weight is not finite: the weights of
    both networks are then those before that step, and the checkpoint is of an earlier one.

    >>> from lib.gan import eight_gaussians, gaussian, point_critic, point_generator, train_wgan
    >>> networks, few = (point_generator(), point_critic()), {"steps": 2, "progress": False}
    >>> len(train_wgan(*networks, eight_gaussians(100), gaussian(2), **few)["value"])
    2
    """
    objective = wgan_objective(critic, constraint, clip=clip, penalty=penalty, one_sided=one_sided)
    networks = {"generator": generator, "critic": critic}
    optimizers = {"generator": generator_optimizer, "critic": critic_optimizer}
    spectral = constraint == "spectral"
    run = Run(
        networks,
        real,
        noise,
        optimizers,
        prepare=(lambda: normalize_spectrally_(critic, real.shape[1:])) if spectral else None,
        steps=steps,
        critic_steps=critic_steps,
        batch_size=batch_size,
        **settings,
    )
    numbers = {"clip": {"clip": clip}, "penalty": {"penalty": penalty, "one_sided": one_sided}}
    return run.train(objective, {"constraint": constraint, **numbers.get(constraint, {})})


def train_gan(
    generator: nn.Module,
    discriminator: nn.Module,
    real: Tensor,
    noise: Noise,
    loss: str = "non-saturating",
    *,
    steps: int,
    critic_steps: int = 1,
    batch_size: int = 128,
    generator_optimizer: OptimizerOf | None = None,
    critic_optimizer: OptimizerOf | None = None,
    **settings: Unpack[RunSettings],
) -> History:
    """The vanilla GAN: ``min_x max_y E log d_y(a) + E log(1 − d_y(h_x(ω)))`` (slide 41).

    d_y is the sigmoid of what the discriminator returns, [n] or [n, 1] logits.
    loss: what the generator minimizes, as in ``gan_objective``. critic_steps, critic_optimizer:
    the discriminator's. The other arguments, what is returned and what is raised are those of
    ``train_wgan``. Raises ValueError for an unknown loss, and for a discriminator that ends in a
    sigmoid.

    >>> from lib.gan import eight_gaussians, gaussian, point_critic, point_generator, train_gan
    >>> networks, few = (point_generator(), point_critic()), {"steps": 2, "progress": False}
    >>> len(train_gan(*networks, eight_gaussians(100), gaussian(2), **few)["value"])
    2
    """
    objective = gan_objective(loss)
    networks = {"generator": generator, "critic": discriminator}
    optimizers = {"generator": generator_optimizer, "critic": critic_optimizer}
    run = Run(
        networks,
        real,
        noise,
        optimizers,
        logits=True,
        steps=steps,
        critic_steps=critic_steps,
        batch_size=batch_size,
        **settings,
    )
    return run.train(objective, {"loss": loss})
