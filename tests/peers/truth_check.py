"""Compares a result of `cnse bench latency` with the server's own log of the same requests.

usage: truth_check.py NAME RESULT.json REQUESTS.jsonl SERVER.log     (see scripts/bench_truth.sh)
"""
import json
import math
import sys

PERCENTILES = [("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99), ("p999", 0.999)]
NORMAL = {"p50": 0.0, "p90": 1.2815516, "p95": 1.6448536, "p99": 2.3263479, "p999": 3.0902323}


def quantile(values, q):
    """Nearest rank, as HdrHistogram has it."""
    return values[max(0, math.ceil(q * len(values)) - 1)]


def main():
    name, result, requests, log = sys.argv[1:]
    result = json.load(open(result))
    logged = {}
    for line in open(log):
        row = json.loads(line)
        logged[row["id"]] = row
    counted = [json.loads(line) for line in open(requests)]
    counted = [row for row in counted if row["ended"] == "ok" and not row["warmup"]]
    server = [logged[row["id"]] for row in counted]
    truth = {
        "ttft_service_ms": sorted(row["first_us"] / 1e3 for row in server),
        "service_ms": sorted(row["total_us"] / 1e3 for row in server),
        "itl_ms": sorted(
            (b - a) / 1e3 for row in server for a, b in zip(row["told_us"], row["told_us"][1:])),
    }
    faults = []
    limited = result["generator"]["limited"]
    noise = result["environment"].get("noise") or {}
    print(f"{name}: {len(counted)} requests at {result['requests_per_s']:.1f}/s,"
          f" generator-limited: {limited},"
          f" other load: {noise.get('other_cores', 0):.2f} cores,"
          f" kept by the hypervisor: {100 * noise.get('steal_share', 0):.1f} %")
    for reason in result["generator"]["reasons"]:
        print(f"  limited: {reason}")
    print(f"  {'':16} {'':5} {'reported':>10} {'server':>10} {'off':>9} {'allowed':>9}")
    for figure, values in truth.items():
        assert result[figure]["n"] == len(values), (figure, result[figure]["n"], len(values))
        for percentile, q in PERCENTILES:
            reported = result[figure][percentile]
            if reported is None:
                continue
            true = quantile(values, q)
            allowed = 0.01 * true + 0.05
            ok = abs(reported - true) <= allowed
            print(f"  {figure:16} {percentile:5} {reported:10.3f} {true:10.3f} {reported - true:+9.3f}"
                  f" {allowed:9.3f} {'' if ok else ' OFF'}")
            if not ok:
                faults.append(f"{figure} {percentile}")
    if name == "lognormal":
        sigma, mu = 0.5, math.log(20) - 0.125
        for percentile, z in NORMAL.items():
            low, high = result["ttft_service_ms"].get("ci", {}).get(percentile, (None, None))
            if low is None:
                continue
            # The log tells what the server took beyond its delay; the distribution does not.
            analytic = math.exp(mu + sigma * z)
            ok = low - 0.05 - 0.01 * analytic <= analytic <= high
            print(f"  analytic         {percentile:5} {analytic:10.3f} in {low:.3f} to {high:.3f}"
                  f" {'' if ok else ' OUTSIDE'}")
            if not ok:
                faults.append(f"analytic {percentile}")
    if name == "fixed":
        for figure, delay in (("ttft_service_ms", 20.0), ("itl_ms", 2.0)):
            p50 = result[figure]["p50"]
            if not abs(p50 - delay) <= 0.01 * delay + 0.05:
                print(f"  {figure} p50 is {p50}, the delay is {delay} OFF")
                faults.append(f"{figure} of the delay")
    if "stall" in name:
        # From the raw requests: two stalls are too few for the result to print such percentiles.
        response = sorted(row["ttft_ms"] for row in counted)
        service = sorted(row["ttft_service_ms"] for row in counted)
        r95, s95 = quantile(response, 0.95), quantile(service, 0.95)
        print(f"  from the intended start: p95 {r95:.0f} ms, p99 {quantile(response, 0.99):.0f} ms,"
              f" max {response[-1]:.0f} ms; from the write: p95 {s95:.0f} ms,"
              f" p99 {quantile(service, 0.99):.0f} ms, max {service[-1]:.0f} ms")
        if response[-1] < 1900 or r95 < 1000:
            faults.append("the stall does not show in the response time")
        if name == "capped-stall" and s95 > 500:
            faults.append("the bound did not keep the wait in the client")
    for fault in faults:
        print(f"  FAULT: {fault}")
    sys.exit(1 if faults else 0)


main()
