#!/usr/bin/env python3
"""Holds `cnse bench latency` against aiperf on one llama-server, and both against what went over the wire.

    agreement.py prepare FOLDER PROMPTS     prompts for both, and a tokenizer that aiperf has to have
    agreement.py run TOOL AT_ONCE           one run of cnse or aiperf as a result of cnse's shape, on stdout
    agreement.py table SWEEP…               what agrees; SWEEP is the finished sweep's command, which gives the intervals

scripts/bench_agreement.sh puts them together and sets what `run` reads: URL, METRICS, FOLDER, CNSE, AIPERF, REQUESTS,
N_PREDICT. `prepare` needs the package tokenizers, which aiperf brings; the rest needs nothing but Python 3.10.

The wire is tcpdump's: the kernel's time of each packet on the loopback device, from a connection's first packet to the one
with the first token's event, and from one token's event to the next. Its last event holds the server's own timings. So each
tool is held against times of its own requests that neither tool nor server took.
"""
import json
import math
import os
import random
import struct
import subprocess
import sys
import time
import urllib.request

# What each tool calls what. aiperf's times count from where it sends, as cnse's service times do; cnse's `ttft_ms` and
# `e2e_ms` count from where the request could have begun, so that its own delay is in them. aiperf's request latency ends with
# the last text, and cnse's with the stream, so the last text is taken from its requests. aiperf's inter-token latency is a
# request's mean, which is cnse's (and vLLM's) time a token; every gap by itself is its inter-chunk latency.
AIPERF_NAMES = {
    "ttft_service_ms": "time_to_first_token",
    "tpot_ms": "inter_token_latency",
    "itl_ms": "inter_chunk_latency",
    "last_text_ms": "request_latency",
}
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
# What is compared; each is held against the same name with wire_ ahead.
FIGURES = [
    "ttft_service_ms_p50", "ttft_service_ms_p95", "itl_ms_p50", "itl_ms_p99", "tpot_ms_p50", "last_text_ms_p50", "tokens_per_s",
]  # fmt: skip
# Past 1 % and 50 us a tool is called off the wire, as scripts/bench_truth.sh has it.
WRONG, WRONG_MS = 0.01, 0.05
# How many samples a percentile takes at 95 %, as in src/bench/statistics/quantile.rs.
SAMPLES_MIN = {"p50": 6, "p90": 36, "p95": 72, "p99": 368}


def prepare(folder, prompts):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = "the of and to in is that it was for on are as with his they at be this from have or by one had not".split()
    draw = random.Random(5)
    with open(f"{folder}/prompts.jsonl", "w") as out:
        for _ in range(prompts):
            # Both read the name "text" (aiperf's single_turn, cnse's --dataset).
            out.write(json.dumps({"text": " ".join(draw.choice(words) for _ in range(48))}) + "\n")
    # aiperf loads a tokenizer though the server's counts are used.
    os.makedirs(f"{folder}/tokenizer", exist_ok=True)
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, **{word: i + 1 for i, word in enumerate(words)}}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(f"{folder}/tokenizer/tokenizer.json")
    for name, content in (
        ("tokenizer_config", {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}),
        ("config", {"model_type": "llama"}),
    ):
        with open(f"{folder}/tokenizer/{name}.json", "w") as out:
            json.dump(content, out)


def distribution(values):
    values = sorted(values)
    if not values:
        return {"n": 0}
    found = {"n": len(values), "mean": sum(values) / len(values), "min": values[0], "max": values[-1]}
    for name, q in PERCENTILES.items():
        fits = len(values) >= SAMPLES_MIN[name]
        found[name] = values[math.ceil(q * len(values) - 1e-9) - 1] if fits else None
    return found


class Wire:
    """What tcpdump saw of a run; nothing where it is not installed or may not listen."""

    def __init__(self, port, file):
        self.file, self.port, self.process = file, port, None
        command = ["tcpdump", "-i", "lo", "-n", "-s", "0", "-B", "65536", "--time-stamp-precision=nano", "-w", file]
        try:
            self.process = subprocess.Popen(
                [*command, "tcp", "port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
        except FileNotFoundError:
            return
        for line in self.process.stderr:
            if "listening on" in line:
                return
        self.process = None

    def end(self):
        """The requests, oldest first: when each connection began, its token events, the server's timings."""
        if self.process is None:
            return []
        time.sleep(1.2)  # what tcpdump has not read yet it would lose
        self.process.terminate()
        said = self.process.stderr.read()
        self.process.wait()
        if "0 packets dropped by kernel" not in said:
            sys.exit(f"agreement.py: error: tcpdump lost packets: {said}")
        flows, all_flows = {}, []
        for at, source, target, syn, payload in packets(self.file):
            to_server = target == self.port
            if to_server and syn:
                # A client's port may come again.
                flow = {"began": at, "asked": b"", "answer": b"", "events": []}
                flows[source] = flow
                all_flows.append(flow)
            flow = flows.get(source if to_server else target)
            if flow is None or not payload:
                continue
            if to_server:
                flow.setdefault("written", at)
                flow["asked"] += payload
            else:
                take_events(flow, at, payload)
        os.unlink(self.file)
        return [flow for flow in all_flows if flow["asked"].startswith(b"POST")]


def packets(file):
    with open(file, "rb") as capture:
        magic, *_ = struct.unpack("<IHHiIII", capture.read(24))
        if magic != 0xA1B23C4D:
            sys.exit(f"agreement.py: error: {file} is no capture in nanoseconds")
        while head := capture.read(16):
            seconds, nanoseconds, length, _ = struct.unpack("<IIII", head)
            frame = capture.read(length)
            ip = frame[14:]
            tcp = ip[(ip[0] & 15) * 4 : struct.unpack("!H", ip[2:4])[0]]
            source, target = struct.unpack("!HH", tcp[:4])
            yield seconds * 1e3 + nanoseconds / 1e6, source, target, bool(tcp[13] & 2), tcp[(tcp[12] >> 4) * 4 :]


def take_events(flow, at, payload):
    """Server-sent events that are whole with this packet."""
    flow["answer"] += payload
    while (end := flow["answer"].find(b"\n\n")) >= 0:
        block, flow["answer"] = flow["answer"][:end], flow["answer"][end + 2 :]
        # A chunk's length stands ahead of the data.
        start = block.find(b"data: {")
        if start < 0:
            continue
        event = json.loads(block[start + 6 :])
        choices = event.get("choices") or [{}]
        if (choices[0].get("delta") or {}).get("content"):
            flow["events"].append(at)
        if "timings" in event:
            flow["timings"] = event["timings"]


def metrics():
    with urllib.request.urlopen(os.environ["METRICS"]) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.split(" ", 1) for line in lines if line and not line.startswith("#"))
    return {name.removeprefix("llamacpp:"): float(value) for name, value in pairs}


def extra():
    return {"ignore_eos": True, "cache_prompt": False, "seed": 7, "temperature": 0.8}


def run_cnse(at_once, warmup, folder):
    env = os.environ
    command = [
        env["CNSE"], "bench", "latency", "--server", env["URL"], "--chat", "--dataset", f"{folder}/prompts.jsonl",
        "--iters", env["REQUESTS"], "--warmup", str(warmup), "--concurrency", str(at_once), "--n-predict", env["N_PREDICT"],
        "--extra", json.dumps(extra()), "--requests", f"{folder}/requests.jsonl", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit(f"agreement.py: error: {command} ended with {done.returncode}")
    result = json.loads(done.stdout)
    with open(f"{folder}/requests.jsonl") as lines:
        requests = [request for request in map(json.loads, lines) if not request["warmup"]]
    ttft = [request["ttft_service_ms"] for request in requests]
    result["last_text_ms"] = distribution([first + sum(request["gaps_ms"]) for first, request in zip(ttft, requests)])
    return result, ttft


def run_aiperf(at_once, warmup, folder):
    env = os.environ
    command = [
        env["AIPERF"], "profile", "-m", "tiny", "--tokenizer", f"{folder}/tokenizer", "--url", env["URL"],
        "--endpoint-type", "chat", "--streaming", "--use-server-token-count", "--connection-reuse-strategy", "never",
        "--input-file", f"{folder}/prompts.jsonl", "--custom-dataset-type", "single_turn",
        "--dataset-sampling-strategy", "sequential", "--request-count", env["REQUESTS"],
        "--warmup-request-count", str(warmup), "--concurrency", str(at_once), "--random-seed", "7",
        "--extra-inputs", json.dumps(extra() | {"max_tokens": int(env["N_PREDICT"])}),
        "--no-gpu-telemetry", "--no-server-metrics", "--ui", "none", "--artifact-dir", f"{folder}/aiperf",
    ]  # fmt: skip
    with open(f"{folder}/aiperf.log", "w") as log:
        code = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
    if code:
        sys.exit(f"agreement.py: error: aiperf ended with {code}: {open(log.name).read()[-2000:]}")
    with open(f"{folder}/aiperf/profile_export_aiperf.json") as file:
        summary = json.load(file)
    with open(f"{folder}/aiperf/profile_export.jsonl") as lines:
        records = [record for record in map(json.loads, lines) if record["metadata"]["benchmark_phase"] == "profiling"]
    records.sort(key=lambda record: record["metadata"]["request_start_ns"])
    ok = [record["metrics"] for record in records if not record.get("error")]
    result = {
        "cnse": "0", "record": 1, "wall_s": summary["benchmark_duration"]["avg"], "ok": len(ok),
        "errors": len(records) - len(ok), "tokens_per_s": summary["output_token_throughput"]["avg"],
        "requests_per_s": summary["request_throughput"]["avg"], "tokens_source": "usage",
        "tokens": summary["total_osl"]["avg"],
    }  # fmt: skip
    for name, theirs in AIPERF_NAMES.items():
        values = [metrics[theirs]["value"] for metrics in ok if theirs in metrics]
        result[name] = distribution([v for value in values for v in (value if isinstance(value, list) else [value])])
    return result, [metrics["time_to_first_token"]["value"] for metrics in ok]


def run(tool, at_once):
    folder = os.environ["FOLDER"]
    warmup = 2 * at_once
    wire = Wire(int(os.environ["URL"].rsplit(":", 1)[1]), f"{folder}/wire.pcap")
    before = metrics()
    result, ttft = (run_cnse if tool == "cnse" else run_aiperf)(at_once, warmup, folder)
    after = metrics()
    asked = int(os.environ["REQUESTS"]) + warmup
    result["server_tokens_each"] = (after["tokens_predicted_total"] - before["tokens_predicted_total"]) / asked
    result["tokens_each"] = result["tokens"] / result["ok"]
    requests = wire.end()
    if requests:
        counted = requests[warmup:]
        if len(counted) != len(ttft):
            sys.exit(f"agreement.py: error: {len(counted)} requests on the wire, {len(ttft)} told by {tool}")
        truth = [flow["events"][0] - flow["began"] for flow in counted]
        gaps = [[b - a for a, b in zip(flow["events"], flow["events"][1:])] for flow in counted]
        span = max(flow["events"][-1] for flow in counted) - min(flow["began"] for flow in counted)
        # Each request's first token: as told, less the wire's. Requests are matched in the order in which they began.
        result["off_ttft_ms"] = distribution([told - true for told, true in zip(ttft, truth)])
        result["wire_ttft_service_ms"] = distribution(truth)
        result["wire_unwritten_ms"] = distribution([flow["written"] - flow["began"] for flow in counted])
        result["wire_itl_ms"] = distribution(sum(gaps, []))
        result["wire_tpot_ms"] = distribution([sum(each) / len(each) for each in gaps])
        result["wire_last_text_ms"] = distribution([flow["events"][-1] - flow["began"] for flow in counted])
        result["wire_tokens_per_s"] = sum(len(flow["events"]) for flow in counted) / span * 1e3
        timings = [flow["timings"] for flow in counted]
        result["server_prompt_ms"] = distribution([each["prompt_ms"] for each in timings])
        result["server_tpot_ms"] = distribution([each["predicted_ms"] / (each["predicted_n"] - 1) for each in timings])
        for figure in FIGURES:
            told, true = number(result, figure), number(result, f"wire_{figure}")
            if told is not None and true:
                result[f"off_{figure}"] = told / true - 1
        result["off_server_tpot_ms_p50"] = result["tpot_ms"]["p50"] / result["server_tpot_ms"]["p50"] - 1
        result["off_server_tokens"] = result["tokens_each"] / result["server_tokens_each"] - 1
    print(json.dumps(result))


def number(result, figure):
    name, _, tail = figure.rpartition("_")
    return result.get(figure) if figure in result else result.get(name, {}).get(tail)


def table(sweep):
    """For each figure and load: what the tools say, whether they agree, and if not, who is off the wire."""

    def judged(claim):
        # 0.0625 at the first look is 5 % (src/bench/experiment/hypothesis.rs).
        command = [*sweep[: sweep.index("--")], "--quiet", "--json", "--alpha", "0.0625", "--expect", claim]
        done = subprocess.run([*command, *sweep[sweep.index("--") :]], stdout=subprocess.PIPE, check=False)
        result = json.loads(done.stdout)
        return result["runs"], result["verdicts"][0]

    def share(verdict):
        if not verdict["ci"]:
            return "-", None
        low, high = verdict["ci"]
        return f"{verdict['effect']:+7.2%} [{low:+.2%}, {high:+.2%}]", (low, high)

    print(f"{'':19} {'at once':>7} {'cnse':>9} {'aiperf':>9}  {'cnse / aiperf':30} {'cnse / wire':30} {'aiperf / wire':30}")
    for at_once in (1, 4):
        for figure in FIGURES:
            runs, both = judged(f"{figure}: tool=cnse,at_once={at_once} > tool=aiperf,at_once={at_once}")
            text, interval = share(both)
            if interval is None:
                continue
            means = []
            for tool in ("cnse", "aiperf"):
                values = [number(r, figure) for r in runs if r["settings"] == {"tool": tool, "at_once": at_once}]
                means.append(sum(values) / len(values))
            off, bounds = {}, {}
            for tool in ("cnse", "aiperf"):
                _, verdict = judged(f"off_{figure}: tool={tool},at_once={at_once} > 0")
                off[tool], bounds[tool] = share(verdict)
            print(
                f"{figure:19} {at_once:7} {means[0]:9.3f} {means[1]:9.3f}  {text:30} {off['cnse']:30} {off['aiperf']:30} "
                + conclusion(interval, bounds, 0 if figure == "tokens_per_s" else WRONG_MS / means[0])
            )
        for tool in ("cnse", "aiperf"):
            text, _ = share(judged(f"off_server_tpot_ms_p50: tool={tool},at_once={at_once} > 0")[1])
            tokens, _ = share(judged(f"off_server_tokens: tool={tool},at_once={at_once} > 0")[1])
            runs, off = judged(f"off_ttft_ms_p50: tool={tool},at_once={at_once} > 0")
            runs = [run for run in runs if run["settings"] == {"tool": tool, "at_once": at_once}]
            unwritten = [number(run, "wire_unwritten_ms_p50") for run in runs]
            print(f"  {tool:6} / the server's own time a token {text}, tokens {tokens}")
            if off["ci"] and None not in unwritten:
                low, high = off["ci"]
                print(
                    f"  {tool:6} first token, request by request: {off['effect']:+.3f} ms [{low:+.3f}, {high:+.3f}] to the wire;"
                    f" the request is written {sum(unwritten) / len(unwritten):.3f} ms after its connection is opened"
                )


def conclusion(interval, off, least):
    """`off`: where each tool is to the wire, as shares; `least`: a share that is too small to be wrong."""
    differ = not interval[0] <= 0 <= interval[1]
    if None in off.values():
        return "DISAGREE" if differ else "agree"
    wrong = [tool for tool, (low, high) in off.items() if low > WRONG + least or high < -WRONG - least]
    if wrong:
        return f"{'DISAGREE' if differ else 'not told apart by the runs'}: {' and '.join(wrong)} off the wire"
    if differ:
        return "both as the wire says: the runs did differ"
    if all(-WRONG - least <= low and high <= WRONG + least for low, high in off.values()):
        return "agree, both as the wire says"
    return "agree" if max(map(abs, interval)) <= 0.1 else "not told apart by the runs"


def main():
    match sys.argv[1:]:
        case ["prepare", folder, prompts]:
            prepare(folder, int(prompts))
        case ["run", tool, at_once, *_]:
            run(tool, int(at_once))
        case ["table", *sweep] if "--" in sweep:
            table(sweep)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
