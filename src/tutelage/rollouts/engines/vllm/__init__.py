"""vLLM as an engine: started beside a run or spoken to as a server, given the student's weights."""

from tutelage.rollouts.engines.vllm.engine import VllmEngine
from tutelage.rollouts.engines.vllm.settings import VllmSettings

__all__ = ["VllmEngine", "VllmSettings"]
