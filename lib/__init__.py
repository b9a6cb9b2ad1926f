"""The library of the book, a wing for each topic of the lecture.

==============  ==========================================================  ====================
``balls``       norm balls: norm, dual norm, projection, linear maximizer   slides 7, 8, 11, 12
``attacks``     FGSM, PGA, majorization-minimization, robust accuracy       slides 7, 9 to 15
``danskin``     directional derivative, shortest vector of the hull         slides 19 to 22
``training``    ERM, adversarial, Danskin and sharpness-aware training      slides 5, 16 to 23, 44
``fairness``    class-focused sampling, accuracy class by class             slides 25, 26
``sharpness``   the largest eigenvalue of the Hessian                       slide 43
``transport``   exact Wasserstein distances and potentials                  slides 27 to 34
``lipschitz``   operator norms, Lipschitz constants and how to impose them  slides 36, 39
``gan``         Wasserstein and vanilla GANs                                slides 37 to 41
``games``       min-max dynamics                                            slides 3, 42
``models``      the classifiers                                             slides 5, 8, 10, 22
``data``        digits, MNIST, CIFAR-10, RetinaMNIST, phantoms              slides 10, 22, 24, 25
``runs``        what any long run needs: session, checkpoints, processes, records
``pages``       what a page of the book uses: set-up, plots, exercises
``checks``      what functions of every wing refuse, each in one sentence
==============  ==========================================================  ====================

A wing's ``__init__`` hands out what users call; files that begin with an underscore are for those
who maintain it. Imports run one way, down this order: pages; training, gan, sharpness; danskin,
fairness; data, attacks, lipschitz; games, transport, balls, models, runs; checks.
"""
