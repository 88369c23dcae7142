"""The optimiser of ``train.py``: Muon on the matrices inside the blocks, AdamW on the rest."""

import torch


def orthogonalise(matrices, steps=5):
    """Bring the singular values of each matrix [..., row, column] to about 1.

    Newton-Schulz iteration with the coefficients of Jordan et al. (2024): quick, not exact.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: every direction of a matrix learns at the same pace.

    Muon (Jordan et al. 2024) for matrices [in, out] as GPT-2 stores them. ``parts`` of a group
    says how many matrices lie side by side in each (query, key and value: 3). ``dtype`` is what
    the products are computed in.
    """

    def __init__(self, groups, lr, weight_decay, dtype, momentum=0.95):
        self.dtype, self.momentum = dtype, momentum
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        by_shape = {}  # matrices of one shape go through the products together
        for group in self.param_groups:
            shrink = 1 - group["lr"] * group["weight_decay"]
            for weight in group["params"]:
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].lerp_(weight.grad, 1 - self.momentum)
                update = weight.grad.lerp(state["momentum"], self.momentum)  # Nesterov
                weight.mul_(shrink)
                halves = (tensor.chunk(group["parts"], 1) for tensor in (weight, update))
                for target, piece in zip(*halves, strict=True):
                    by_shape.setdefault(piece.shape, []).append((target, piece, group["lr"]))
        for (n_in, n_out), members in by_shape.items():
            stack = torch.stack([piece for _, piece, _ in members])
            updates = orthogonalise(stack.to(self.dtype)).float()
            scale = max(1, n_out / n_in) ** 0.5
            for (target, _, lr), update in zip(members, updates, strict=True):
                target.add_(update, alpha=-lr * scale)


class MasterCopy:
    """Muon and AdamW on float32 copies of weights that the model may hold in bfloat16."""

    def __init__(self, model, muon_lr, adam_lr, weight_decay):
        names, self.weights = zip(*model.named_parameters(), strict=True)
        self.masters = [w.detach().float().clone() for w in self.weights]
        matrices = {1: [], 3: []}
        rest = []
        for name, master in zip(names, self.masters, strict=True):
            inside = ".h." in name and master.ndim == 2
            (matrices[3 if "c_attn" in name else 1] if inside else rest).append(master)
        groups = [{"params": members, "parts": n} for n, members in matrices.items()]
        muon = Muon(groups, muon_lr, weight_decay, self.weights[0].dtype)
        adam = torch.optim.AdamW(rest, adam_lr, betas=(0.9, 0.95), weight_decay=0.0)
        self.optimisers = [muon, adam]
        self.peaks = [muon_lr, adam_lr]

    def step(self, factor):
        """One update from the model's gradients, at ``factor`` times the peak learning rate."""
        for weight, master in zip(self.weights, self.masters, strict=True):
            master.grad = weight.grad.float()
            weight.grad = None
        for optimiser, peak in zip(self.optimisers, self.peaks, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = peak * factor
            optimiser.step()
        self.to_model()

    @torch.no_grad()
    def to_model(self):
        for weight, master in zip(self.weights, self.masters, strict=True):
            weight.copy_(master)

    def state(self):
        return {"masters": self.masters, "optimisers": [o.state_dict() for o in self.optimisers]}

    def load(self, state):
        for master, saved in zip(self.masters, state["masters"], strict=True):
            master.copy_(saved)
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.to_model()
