# The course in JupyterLab: docker build -t dino . && docker run --rm -p 8888:8888 dino
# Work is lost with the container; to keep it: -v "$PWD/notebooks:/course/notebooks"
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends make git \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /course
COPY . .
RUN make setup
EXPOSE 8888
CMD [".venv/bin/jupyter", "lab", "--ip=0.0.0.0", "--allow-root", "--no-browser", \
     "--notebook-dir=notebooks"]
