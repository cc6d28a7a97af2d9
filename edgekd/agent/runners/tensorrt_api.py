"""TensorRT through its Python API, for devices without trtexec; only members that 8.5 to 11.1 share, or asked for."""

from __future__ import annotations

import math
import random
import time
from array import array
from pathlib import Path
from typing import Any

from edgekd.agent.device.machine import ram_in_use
from edgekd.agent.measurement import MemoryUse
from edgekd.agent.messages import Executed, Load, LogitsArray
from edgekd.agent.refusal import RefusedError
from edgekd.agent.runners.engines import engine_key, engine_of
from edgekd.agent.runners.inputs import input_shape, random_bytes
from edgekd.agent.runners.npy import ITEM_BYTES, array_of, full_batches, logits_in, read_npy
from edgekd.agent.runners.runner import Runner, timed_runs
from edgekd.agent.runners.tensorrt_rules import OLDEST_WITH_WORDS, parser_family

_ITEM_BYTES = {"FLOAT": 4, "HALF": 2, "INT32": 4, "INT64": 8, "INT8": 1, "UINT8": 1, "BOOL": 1}


class TensorRTRunner(Runner):
    """One engine in this process. A sample is a host round trip: enqueue and wait, no copies."""

    provider = "TensorRT's Python API, host round trip"

    def __init__(self, request: Load, trt: Any, cuda: Any, gpu: str) -> None:
        super().__init__(request)
        self.trt, self.cuda, self.gpu, self.runtime_version = trt, cuda, gpu, str(trt.__version__)

    def load(self) -> None:
        """Build the engine, or take it from the cache, and run it once."""
        request, trt = self.request, self.trt
        self.baseline_memory_bytes = ram_in_use()
        if parser_family(self.runtime_version) is None:
            raise RefusedError("machine", f"TensorRT {self.runtime_version} is installed; {OLDEST_WITH_WORDS}")
        self.batch, self.name, self.flags = request.batch, request.input_name, request.flags
        self.input_shape = input_shape(self.path, request.declared, self.batch, request.image_shape)
        self.open_shape = None in (request.declared or ())
        self.commands.append(f"TensorRT {self.runtime_version} Python API {' '.join(self.flags)}".strip())
        self.logger = trt.Logger(trt.Logger.ERROR)
        parts = ("api", self.sha256, self.runtime_version, self.gpu, *self.flags, *self.input_shape)
        engine, self.build_s = engine_of(request, engine_key(*parts), self._build)
        begin = time.perf_counter()
        self.runtime = trt.Runtime(self.logger)
        self.engine = self._made(self.runtime.deserialize_cuda_engine(engine.read_bytes()), "deserialize the engine")
        self.context = self._made(self.engine.create_execution_context(), "create an execution context")
        self.load_ms = 1000 * (time.perf_counter() - begin)
        self._bind(request.seed)
        begin = time.perf_counter()
        self._run()
        self.first_inference_ms = 1000 * (time.perf_counter() - begin)

    def _made(self, value: Any, what: str) -> Any:
        if value is None or value is False:  # a new network has no layers yet and is falsy
            message = f"TensorRT {self.runtime_version} could not {what} of {self.path.name}"
            raise RefusedError("machine", message)
        return value

    def _build(self, place: Path) -> None:
        trt = self.trt
        builder = trt.Builder(self.logger)
        network = self._made(builder.create_network(self._network_flags()), "create a network")
        parser = trt.OnnxParser(network, self.logger)
        if not parser.parse_from_file(str(self.path)):
            errors = "; ".join(str(parser.get_error(index).desc()) for index in range(parser.num_errors))
            raise RefusedError("file", f"TensorRT {self.runtime_version} cannot parse {self.path.name}: {errors}")
        config = builder.create_builder_config()
        for flag, member in (("--fp16", "FP16"), ("--int8", "INT8")):
            if flag in self.flags:
                config.set_flag(getattr(trt.BuilderFlag, member))
        if "--noTF32" in self.flags:
            config.clear_flag(trt.BuilderFlag.TF32)
        if self.open_shape:
            profile, shape = builder.create_optimization_profile(), self.input_shape
            profile.set_shape(self.name, shape, shape, shape)
            config.add_optimization_profile(profile)
        plan = self._made(builder.build_serialized_network(network, config), "build an engine")
        place.write_bytes(bytes(memoryview(plan)))

    def _network_flags(self) -> int:
        """The explicit batch where it still must be asked for, and strong typing where it is asked for."""
        flags, available = 0, self.trt.NetworkDefinitionCreationFlag
        if parser_family(self.runtime_version) in ("8.5", "8.6"):
            flags |= 1 << int(available.EXPLICIT_BATCH)
        if "--stronglyTyped" in self.flags:
            flags |= 1 << int(available.STRONGLY_TYPED)
        return flags

    def _bind(self, seed: int) -> None:
        engine, context, mode = self.engine, self.context, self.trt.TensorIOMode
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == mode.INPUT]
        outputs = [name for name in names if engine.get_tensor_mode(name) == mode.OUTPUT]
        if inputs != [self.name] or not outputs:
            raise RefusedError("file", f"{self.path.name} must have one input, {self.name}; its engine has {inputs}")
        self._made(context.set_input_shape(self.name, self.input_shape), "set the input shape")
        self.output_shapes = tuple(tuple(context.get_tensor_shape(name)) for name in outputs)
        self._output_type = self._type(outputs[0])
        self._sizes = {name: self._bytes(name, list(context.get_tensor_shape(name))) for name in names}
        self._addresses = {name: self.cuda.allocate(size) for name, size in self._sizes.items()}
        for name, address in self._addresses.items():
            self._made(context.set_tensor_address(name, address), f"set the address of {name}")
        self._output = outputs[0]
        if self._type(self.name) == "FLOAT":
            draw, count = random.Random(seed), math.prod(self.input_shape)
            data = array("f", (draw.uniform(-1.7, 1.7) for _ in range(count))).tobytes()
        else:
            data = random_bytes(seed, self._sizes[self.name])
        self.cuda.upload(self._addresses[self.name], data)

    def _type(self, name: str) -> str:
        return str(self.engine.get_tensor_dtype(name)).rpartition(".")[2]

    def _bytes(self, name: str, shape: list[int]) -> int:
        return math.prod(shape) * _ITEM_BYTES[self._type(name)]

    def _run(self) -> None:
        if not self.context.execute_async_v3(self.cuda.stream):
            raise RefusedError("machine", f"TensorRT {self.runtime_version} could not run {self.path.name}")
        self.cuda.synchronize()

    def settle(self, runs: int) -> None:
        """Run a few times untimed."""
        for _ in range(runs):
            self._run()

    def samples(self, runs: int, seconds: float, most_seconds: float) -> list[float]:
        """Return the milliseconds of each run."""
        return timed_runs(self._run, runs, seconds, most_seconds)

    def logits(self, images: Path) -> LogitsArray:
        """Return the first output for the images of an .npy file."""
        dtype, shape, data = read_npy(images)
        image_bytes = ITEM_BYTES[dtype] * math.prod(shape[1:])
        if shape[1:] != self.input_shape[1:] or image_bytes * self.batch != self._sizes[self.name]:
            takes = f"the engine takes {list(self.input_shape)}"
            raise RefusedError("file", f"{images} holds {dtype} {list(shape)}; {takes}")
        received = b""
        row_bytes = self._sizes[self._output] // self.batch
        for batch, count in full_batches(data, image_bytes, self.batch):
            self.cuda.upload(self._addresses[self.name], batch)
            self._run()
            output = self.cuda.download(self._addresses[self._output], self._sizes[self._output])
            received += output[: count * row_bytes]
        item = _ITEM_BYTES[self._output_type]
        return self._array(received, [shape[0], row_bytes // item])

    def _array(self, data: bytes, shape: list[int]) -> LogitsArray:
        types = {"FLOAT": "<f4", "HALF": "<f2", "INT32": "<i4", "INT64": "<i8"}
        if self._output_type not in types:
            raise RefusedError("file", f"the logits of {self.path.name} are {self._output_type}, not numbers")
        logits = array_of(types[self._output_type], shape, data)
        logits_in(logits)  # what cannot be read back is not sent
        return logits

    def memory(self) -> MemoryUse:
        """Return the RAM that the whole device has in use with the model loaded; a Jetson's GPU shares it."""
        return MemoryUse(ram_in_use(), self.baseline_memory_bytes)

    def executed(self) -> Executed:
        """Return that the engine does not say which layers ran as integers."""
        return Executed(None, None, ("TensorRT",))
