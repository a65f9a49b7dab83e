"""A `docker` that serves a SavedModel itself, over REST and gRPC: enough for `make verify`."""

import http.server
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def run(arguments):
    mount = next(a for a in arguments if a.startswith("--mount="))
    folder = re.search(r"source=(.*),target=", mount)[1]
    process = subprocess.Popen(
        [sys.executable, __file__, "serve", folder],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,  # whoever called us waits until all have closed theirs
        start_new_session=True,
    )
    print(process.pid)


def serve(folder):
    import grpc
    import tensorflow as tf
    import tensorflow_text  # noqa: F401
    from google.protobuf import text_format
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
    from tensorflow_serving.config import model_server_config_pb2

    [config] = text_format.Parse(
        (folder / "models.config").read_text(), model_server_config_pb2.ModelServerConfig()
    ).model_config_list.config
    assert list(config.model_version_policy.specific.versions) == [1, 2]
    models = {version: tf.saved_model.load(str(folder / str(version))) for version in (1, 2)}

    def answer(label, signature, inputs):
        version = config.version_labels[label]
        function = models[version].signatures[signature]
        specs = function.structured_input_signature[1]
        tensors = {k: tf.constant(v, specs[k].dtype) for k, v in inputs.items()}
        return version, function(**tensors)

    class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request, context):
            spec = request.model_spec
            inputs = {k: tf.make_ndarray(v) for k, v in request.inputs.items()}
            version, outputs = answer(spec.version_label, spec.signature_name, inputs)
            reply = predict_pb2.PredictResponse(
                outputs={k: tf.make_tensor_proto(v) for k, v in outputs.items()}
            )
            reply.model_spec.version.value = version
            return reply

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/monitoring/prometheus/metrics":
                self.reply(":tensorflow:serving:batching_session:wrapped_run_count{} 5\n")
            else:
                assert self.path == f"/v1/models/{config.name}"
                states = [{"version": version, "state": "AVAILABLE"} for version in models]
                self.reply(json.dumps({"model_version_status": states}))

        def do_POST(self):
            from polyhead.serving.export import as_json
            from polyhead.serving.loader import content

            label = re.fullmatch(rf"/v1/models/{config.name}/labels/(\w+):predict", self.path)[1]
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            inputs = {
                k: [content(x) if isinstance(x, str | dict) else x for x in values]
                for k, values in request["inputs"].items()
            }
            _, outputs = answer(label, request["signature_name"], inputs)
            outputs = {k: as_json(v) for k, v in outputs.items()}
            if len(outputs) == 1:
                [outputs] = outputs.values()
            self.reply(json.dumps({"outputs": outputs}))

        def reply(self, text):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *arguments):
            pass

    server = grpc.server(ThreadPoolExecutor(4))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Service(), server)
    ports = {"8500": server.add_insecure_port("127.0.0.1:0")}
    server.start()
    rest = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    ports["8501"] = rest.server_port
    file = ports_file(os.getpid())
    file.with_suffix(".new").write_text(json.dumps(ports))
    file.with_suffix(".new").rename(file)
    rest.serve_forever()  # Python's thread pools end with the main thread


def ports_file(process):
    return Path(tempfile.gettempdir()) / f"ports-{process}.json"


def port(process, inside):
    while not ports_file(process).exists():  # it imports TensorFlow
        os.kill(int(process), 0)
        time.sleep(0.1)
    print(f"127.0.0.1:{json.loads(ports_file(process).read_text())[inside]}")


def remove(process):
    os.kill(int(process), signal.SIGKILL)
    ports_file(process).unlink(missing_ok=True)


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "info":
        print("0.0")
    elif command == "run":
        run(arguments)
    elif command == "serve":
        serve(Path(arguments[0]))
    elif command == "port":
        port(*arguments)
    elif command == "rm":
        remove(arguments[-1])
