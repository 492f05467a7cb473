"""What a worker of vLLM gains for a run: weights that arrive everywhere.

vLLM imports it by its bare name, from the folder it lies in.
"""

# pyright: basic

from typing import Any


class TakesWeights:
    """Given as --worker-extension-cls, it becomes a further base of vLLM's worker."""

    model_runner: Any
    device: Any

    def take_weights(self, weights_path: str) -> None:
        """Read a folder of `save_pretrained` into the model, in place.

        On CPUs, vLLM 0.32 multiplies by packed copies of its matrices. `reload_weights` alone
        leaves two of them behind: a head that is tied to the embedding is in no file, so its copy
        stays as it was at the start; and experts are packed only when their kernel is made.
        """
        on_cpu = self.device.type == "cpu"
        modules = list(self.model_runner.get_model().modules()) if on_cpu else []
        for module in modules:
            method: Any = getattr(module, "quant_method", None)
            if getattr(method, "moe_kernel", None) is not None:
                method.moe_kernel = None
        self.model_runner.reload_weights(weights_path=weights_path)
        for module in modules:
            method = getattr(module, "quant_method", None)
            # Where the copy is all that is left, it has just been made from the files.
            if "cpu_linear" in vars(module) and method is not None and module.weight.numel():
                method.process_weights_after_loading(module)
