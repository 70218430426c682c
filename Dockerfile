# The server in an image without a model: it is fetched at the first start into the volume /var/cache/manyfold.
#
#   docker build -t manyfold .
#   docker run --rm -p 8000:8000 -v manyfold-cache:/var/cache/manyfold -e MANYFOLD_API_KEY=... manyfold
#
# Every option is an environment variable (docker run --rm manyfold serve --help). The image listens on all addresses,
# so it asks for a key; MANYFOLD_INSECURE_NO_AUTH=true does without, for networks that something else protects.

FROM node:20-bookworm-slim AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ make python3 \
    && rm -rf /var/lib/apt/lists/*
# docker build --build-arg MANYFOLD_BUILD=cuda adds the CUDA backend; run it with --gpus all and --backend cuda. nvcc comes
# as Python wheels, only the addon goes into the image.
ARG MANYFOLD_BUILD=cpu
RUN if [ "$MANYFOLD_BUILD" = cuda ]; then \
      apt-get update && apt-get install -y --no-install-recommends python3-venv && rm -rf /var/lib/apt/lists/* \
      && python3 -m venv /opt/toolkit \
      && /opt/toolkit/bin/pip install nvidia-cuda-nvcc==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85 \
      && ln -s /opt/toolkit/lib/python3*/site-packages/nvidia/cu13 /usr/local/cuda; \
    fi
WORKDIR /app
COPY package.json package-lock.json .npmrc ./
RUN npm ci --ignore-scripts
COPY tsconfig.json ./
COPY scripts/ scripts/
COPY native/ native/
COPY src/ src/
COPY loadtest/ loadtest/
# Unit tests beside their files are compiled too, and read these helpers; neither goes into the image.
COPY test/support/ test/support/
RUN npm run build && find dist -name '*.test.*' -delete && rm -rf dist/test dist/loadtest/testing && npm prune --omit=dev --ignore-scripts

FROM node:20-bookworm-slim
# pip fetches the default model. tini is process 1: it reaps children and passes SIGTERM on (with docker run --init it
# sees that another init is there and does no harm).
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3-pip tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home manyfold \
    && install -d -o manyfold -g manyfold /var/cache/manyfold
WORKDIR /app
COPY --from=build /app/package.json ./
COPY --from=build /app/node_modules node_modules/
COPY --from=build /app/native/*.node native/
COPY --from=build /app/dist dist/
# Served when neither a model nor adapters are named.
COPY examples/ examples/
ENV NODE_ENV=production
ENV MANYFOLD_HOST=0.0.0.0
ENV MANYFOLD_PORT=8000
ENV MANYFOLD_CACHE_DIR=/var/cache/manyfold
# By number, so that Kubernetes can see that it is not root.
USER 10001
VOLUME /var/cache/manyfold
EXPOSE 8000
STOPSIGNAL SIGTERM
# The first start fetches and packs the model; after that a server that makes no progress for 60 s is unhealthy.
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
    CMD ["node", "-e", "fetch(`http://127.0.0.1:${process.env.MANYFOLD_PORT}/health`).then((answer) => process.exit(answer.ok ? 0 : 1), () => process.exit(1))"]
ENTRYPOINT ["tini", "-s", "--", "node", "dist/src/cli/main.js"]
CMD ["serve"]
