"""OpenVINO GenAI in this process, asked by lines of JSON on stdin and answering by lines of JSON on stdout.

    python openvino_worker.py MODEL_DIR THREADS [LORA_FILE SCALE]

One line when it is ready: {"ready": true}. Then per request {"prompts": [[ids]…], "outputTokens": n, "adapter": bool}
one answer {"startMs": t, "streams": [{"promptTokens": p, "tokens": n, "firstMs": t, "lastMs": t, "ids": [ids]}…], "endMs": t}, times of one
clock, or {"error": text}. One prompt goes through LLMPipeline, several through ContinuousBatchingPipeline: each is the
faster of the two for its case.
"""

import json
import sys
import time

import numpy as np
import openvino as ov
import openvino_genai as genai


def now_ms() -> float:
    return time.perf_counter() * 1e3


class Times(genai.StreamerBase):
    """When tokens came, and which."""

    def __init__(self) -> None:
        super().__init__()
        self.at: list[float] = []
        self.ids: list[int] = []

    def write(self, token) -> genai.StreamingStatus:
        self.at.append(now_ms())
        self.ids += token if isinstance(token, list) else [token]
        return genai.StreamingStatus.RUNNING

    def end(self) -> None:
        pass


class Worker:
    def __init__(self, model: str, threads: int, lora: tuple[str, float] | None) -> None:
        self.model = model
        self.properties = {
            "INFERENCE_PRECISION_HINT": "bf16",
            "INFERENCE_NUM_THREADS": threads,
            "KV_CACHE_PRECISION": "u8",
        }
        self.adapters = None
        if lora is not None:
            file, scale = lora
            self.adapters = genai.AdapterConfig([(genai.Adapter(file), scale)])
            self.properties["adapters"] = self.adapters
        self.single = genai.LLMPipeline(model, "CPU", **self.properties)
        self.batch = None
        self.requests = 0

    def config(self, output_tokens: int, adapter: bool) -> genai.GenerationConfig:
        config = genai.GenerationConfig()
        config.max_new_tokens = output_tokens
        config.ignore_eos = True
        config.do_sample = False
        config.apply_chat_template = False
        if self.adapters is not None:
            config.adapters = self.adapters if adapter else genai.AdapterConfig()
        return config

    def run_single(self, ids: list[int], config: genai.GenerationConfig) -> dict:
        times = Times()
        row = np.array([ids], dtype=np.int64)
        inputs = genai.TokenizedInputs(ov.Tensor(row), ov.Tensor(np.ones_like(row)))
        start = now_ms()
        self.single.generate(inputs, config, times)
        return {"startMs": start, "streams": [stream(ids, times.at, times.ids)], "endMs": now_ms()}

    def run_batch(self, prompts: list[list[int]], config: genai.GenerationConfig) -> dict:
        if self.batch is None:
            self.single = None  # one copy of the model at a time
            scheduler = genai.SchedulerConfig()
            scheduler.cache_size = 2
            scheduler.max_num_seqs = 64
            scheduler.max_num_batched_tokens = 2048
            scheduler.enable_prefix_caching = False
            scheduler.dynamic_split_fuse = True
            self.batch = genai.ContinuousBatchingPipeline(self.model, scheduler, "CPU", self.properties)
        at: list[list[float]] = [[] for _ in prompts]
        out: list[list[int]] = [[] for _ in prompts]
        start = now_ms()
        handles = [self.add(ids, config) for ids in prompts]
        while self.batch.has_non_finished_requests():
            self.batch.step()
            now = now_ms()
            for handle, times, ids in zip(handles, at, out):
                if handle.can_read():
                    got = [i for output in handle.read().values() for i in output.generated_ids]
                    times += [now] * len(got)
                    ids += got
        return {"startMs": start, "streams": [stream(*s) for s in zip(prompts, at, out)], "endMs": now_ms()}

    def add(self, ids: list[int], config: genai.GenerationConfig):
        self.requests += 1
        return self.batch.add_request(self.requests, ov.Tensor(np.array([ids], dtype=np.int64)), config)

    def run(self, request: dict) -> dict:
        prompts = request["prompts"]
        config = self.config(request["outputTokens"], request["adapter"])
        if len(prompts) == 1:
            if self.single is None:
                self.batch = None
                self.single = genai.LLMPipeline(self.model, "CPU", **self.properties)
            return self.run_single(prompts[0], config)
        if request["adapter"]:
            raise ValueError("add_request() ignores the adapters of its configuration: it cannot batch with adapters")
        return self.run_batch(prompts, config)


def stream(prompt: list[int], at: list[float], ids: list[int]) -> dict:
    return {"promptTokens": len(prompt), "tokens": len(ids), "firstMs": at[0], "lastMs": at[-1], "ids": ids}


def main(model: str, threads: str, *lora: str) -> None:
    worker = Worker(model, int(threads), (lora[0], float(lora[1])) if lora else None)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        try:
            answer = worker.run(json.loads(line))
        except Exception as error:  # the reader decides what to do; the worker stays
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
