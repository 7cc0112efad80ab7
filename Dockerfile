# Two images from one file: `slim` for gateway and kvstore, `worker` with torch.
ARG PYTHON_IMAGE=python:3.11-slim
# For a GPU, `--build-arg CUDA=cuda`: the driver's bindings, and a compiler for Triton.
ARG CUDA=

FROM ${PYTHON_IMAGE} AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
# The socket's volume takes over the owner of this directory.
RUN useradd --system --uid 10001 --user-group --no-create-home tandem \
 && install -d -o tandem -g tandem -m 0750 /run/tandem
WORKDIR /opt/tandem

# What our sources need, as lists that change only when pyproject.toml does.
FROM base AS requirements
COPY pyproject.toml .
COPY <<'SCRIPT' list.py
import sys, tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
wanted = list(project["dependencies"])
for extra in sys.argv[1:]:
    wanted += project["optional-dependencies"][extra]
print("\n".join(wanted))
SCRIPT
ARG CUDA
RUN python list.py gateway cli $CUDA >slim.txt && python list.py worker >worker.txt

FROM base AS wheel
COPY . .
RUN pip wheel --no-deps --wheel-dir /wheels .

FROM base AS slim-packages
COPY constraints.txt .
COPY --from=requirements /opt/tandem/slim.txt .
RUN pip install -c constraints.txt -r slim.txt

FROM slim-packages AS worker-packages
ARG CUDA
# GNU's OpenMP: one pool of threads for torch and for numba's kernels.
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 \
      ${CUDA:+gcc libc6-dev} \
 && rm -rf /var/lib/apt/lists/*
# Where another index has a smaller torch, name it with --build-arg.
ARG EXTRA_INDEX_URL=
COPY --from=requirements /opt/tandem/worker.txt .
RUN pip install ${EXTRA_INDEX_URL:+--extra-index-url "$EXTRA_INDEX_URL"} \
      -c constraints.txt -r worker.txt

FROM worker-packages AS worker
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-deps /wheels/*.whl
# Kernels for this processor; each container takes them to where it may write, and makes
# its own if it finds another one.
RUN NUMBA_CACHE_DIR=/opt/tandem/kernels python -m engine.compile
ENV NUMBA_CACHE_DIR=/tmp/numba HF_HOME=/tmp/huggingface
ENTRYPOINT ["sh", "-c", "cp -rn /opt/tandem/kernels /tmp/numba && exec \"$@\"", "sh"]
USER tandem

FROM slim-packages AS slim
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    pip install --no-deps /wheels/*.whl
# It tokenises with transformers, which would remark at every start that torch is missing.
ENV HF_HOME=/tmp/huggingface TRANSFORMERS_VERBOSITY=error
USER tandem
