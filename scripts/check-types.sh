#!/bin/sh
# The page's types are those of the API's description; `npm run types` in hub/ui writes them anew.
set -eu
cd "$(dirname "$0")/../hub/ui"
fresh=$(mktemp)
trap 'rm -f "$fresh"' EXIT
npx openapi-typescript ../openapi.json -o "$fresh" >/dev/null
if ! cmp -s "$fresh" src/api/schema.ts; then
    echo "hub/ui/src/api/schema.ts is out of date; run: (cd hub/ui && npm run types)" >&2
    exit 1
fi
