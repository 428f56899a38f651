# tumorlens on a CPU: `tumorlens serve`, or any other command, without root.
#   docker build -t tumorlens .
#   docker run -p 127.0.0.1:8080:8080 -e TUMORLENS_TOKEN=SECRET tumorlens
#   docker run -v "$PWD:/data" -w /data --user "$(id -u):$(id -g)" \
#     -e HOME=/tmp/home -e TUMORLENS_CACHE=/data/.tumorlens tumorlens run scans -o out
FROM python:3.12-slim AS build
WORKDIR /source
COPY . .
RUN python -m venv /opt/tumorlens \
 && /opt/tumorlens/bin/pip install --no-cache-dir --disable-pip-version-check '.[app,coco,dicom-node,matlab,volumes]'

FROM python:3.12-slim
# Its home holds the compiled networks, and jobs that wait: a volume, so that they outlive the container.
RUN useradd --uid 1000 --create-home --home-dir /home/tumorlens tumorlens
COPY --from=build /opt/tumorlens /opt/tumorlens
ENV PATH="/opt/tumorlens/bin:$PATH" HOME=/home/tumorlens PYTHONUNBUFFERED=1
USER tumorlens
WORKDIR /home/tumorlens
VOLUME /home/tumorlens
EXPOSE 8080 11112
# The models are loaded within the start period. Other commands than `serve` turn this off: compose.yaml shows how.
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/v1/health', timeout=4)"]
ENTRYPOINT ["tumorlens"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8080"]
