#!/usr/bin/env bash
# Stands in for the command whose name it has: it records the call, and gives the first answer that
# fits of the table $STAGE/answers. A line of it: how the call begins, what has to be on record by
# then, "once" if only the first of these calls is answered so, the exit status, and what to print. Fields
# are separated by the unit separator.
set -euo pipefail

call="${0##*/} $*"
input=
[[ $call != *" -f - "* && $call != *" -f -" ]] || input=$(cat)
# In a pipeline, what comes first is on record first: the input has ended here.
printf '%s%s\n' "${BUILDX_NO_DEFAULT_ATTESTATIONS:+BUILDX_NO_DEFAULT_ATTESTATIONS=$BUILDX_NO_DEFAULT_ATTESTATIONS }" \
    "$call" >>"$STAGE/record"
printf '%s: provider=%s no_proxy=%s\n' "$call" "${KIND_EXPERIMENTAL_PROVIDER:-}" "${no_proxy:-}" >>"$STAGE/environment"

while IFS=$'\x1f' read -r beginning before often status answer; do
    [[ "$call " == "$beginning"* ]] || continue
    [[ -z $before ]] || grep -qF -- "$before" "$STAGE/record" || continue
    [[ -z $often || $(grep -cxF -- "$call" "$STAGE/record") == 1 ]] || continue
    case $answer in
        "its arguments") exec "$@" ;;
        "its input") printf '%s\n' "$input" ;;
        "a new file") # of --output FILE, as podman saves; docker would write over it
            [[ ! -e $3 ]] || { echo "$3 already exists" >&2; exit 125; }
            : >"$3"
            ;;
        "keep") printf '%s\n' "$input" >>"$STAGE/applied" ;;
        *) printf '%b' "$answer" ;;
    esac
    exit "$status"
done <"$STAGE/answers"
echo "no stand-in for: $call" >&2
exit 99
