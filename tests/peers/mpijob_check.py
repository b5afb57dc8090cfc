"""Holds scripts/mpijob.yaml against what the MPI operator and Kubernetes take, without a cluster.

    $(scripts/peers-venv.sh kubernetes) tests/peers/mpijob_check.py [FILE]

The MPIJob's own keys are checked against the list below (the operator's CRD, v2beta1); each pod against Kubernetes' own
schema, which allows no unknown key. What a cluster alone can tell (images, claims, rights) is not seen.
"""

import pathlib
import sys

import kubernetes_validate
import yaml

ROOT = pathlib.Path(__file__).parent.parent.parent
SPEC = {
    "slotsPerWorker": int,
    "runLauncherAsWorker": bool,
    "runPolicy": dict,
    "mpiReplicaSpecs": dict,
    "sshAuthMountPath": str,
    "launcherCreationPolicy": {"AtStartup", "WaitForWorkersReady"},
    "mpiImplementation": {"OpenMPI", "Intel", "MPICH"},
}
RUN_POLICY = {
    "cleanPodPolicy": {"None", "Running", "All"},
    "ttlSecondsAfterFinished": int,
    "activeDeadlineSeconds": int,
    "backoffLimit": int,
    "schedulingPolicy": dict,
    "suspend": bool,
    "managedBy": str,
}
REPLICA = {"replicas": int, "restartPolicy": {"Never", "OnFailure"}, "template": dict}


class Checks:
    def __init__(self):
        self.passed = self.failed = 0

    def check(self, name, right, why=""):
        if right:
            self.passed += 1
        else:
            self.failed += 1
            print(f"FAILED: {name}: {why}")

    def keys(self, where, found, known):
        for key, value in found.items():
            wanted = known.get(key)
            if isinstance(wanted, set):
                self.check(f"{where}.{key}", value in wanted, f"{value!r} is none of {sorted(wanted)}")
            else:
                right = wanted is not None and isinstance(value, wanted) and not (wanted is int and value is True)
                self.check(f"{where}.{key}", right, f"{value!r}: {'an unknown key' if wanted is None else wanted}")


def main():
    path = sys.argv[1] if len(sys.argv) > 1 else ROOT / "scripts" / "mpijob.yaml"
    with open(path, encoding="utf-8") as file:
        documents = list(yaml.safe_load_all(file))
    checks = Checks()
    checks.check("documents", len(documents) == 1, len(documents))
    job = documents[0]
    checks.check("apiVersion", job.get("apiVersion") == "kubeflow.org/v2beta1", job.get("apiVersion"))
    checks.check("kind", job.get("kind") == "MPIJob", job.get("kind"))
    checks.check("metadata.name", bool(job.get("metadata", {}).get("name")), "missing")
    spec = job["spec"]
    checks.keys("spec", spec, SPEC)
    checks.keys("spec.runPolicy", spec.get("runPolicy", {}), RUN_POLICY)
    replicas = spec["mpiReplicaSpecs"]
    checks.check("replicas", set(replicas) == {"Launcher", "Worker"}, sorted(replicas))
    for kind, replica in replicas.items():
        checks.keys(f"spec.mpiReplicaSpecs.{kind}", replica, REPLICA)
        # The operator makes a pod of it, with the replica's restart policy.
        pod = dict(replica["template"]["spec"], restartPolicy=replica["restartPolicy"])
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": kind.lower()}, "spec": pod}
        try:
            kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)
            checks.check(kind, True)
        except kubernetes_validate.ValidationError as error:
            checks.check(kind, False, f"{list(error.path)}: {error.message}")
        names = {volume["name"] for volume in pod["spec"].get("volumes", [])}
        for container in pod["spec"]["containers"]:
            mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
            checks.check(f"{kind}: volumes", mounted <= names, f"{mounted - names} is no volume of the pod")
    launcher = replicas["Launcher"]["template"]["spec"]["containers"][0]
    ranks = int(launcher["args"][launcher["args"].index("-np") + 1])
    slots = replicas["Worker"]["replicas"] * spec.get("slotsPerWorker", 1)
    checks.check("-np", ranks == slots, f"{ranks} ranks, and {slots} slots")
    print(f"{checks.passed} passed, {checks.failed} failed")
    sys.exit(checks.failed != 0)


if __name__ == "__main__":
    main()
