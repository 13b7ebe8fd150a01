#!/bin/sh
# Makes the streams and consumers that the examples use, with the `nats` CLI and its own settings (context, NATS_URL ...).
# What exists already stays as it is.
set -eu
cd "$(dirname "$0")"

for file in stream-*.json; do
  name=${file#stream-}
  name=${name%.json}
  nats stream info "$name" >/dev/null 2>&1 || nats stream add "$name" --config "$file" >/dev/null
done

for file in consumer-*.json; do
  name=${file#consumer-}
  name=${name%.json}
  stream=${name%%-*}
  consumer=${name#*-}
  nats consumer info "$stream" "$consumer" >/dev/null 2>&1 ||
    nats consumer add "$stream" "$consumer" --config "$file" >/dev/null
done
