#!/usr/bin/env bash
# A stand-in for the command of its name: it records the call, and gives the first matching answer of
# the table $STAGE/answers. Fields of a line: prefix of the call, call that has to be recorded before,
# "once" if it applies to the first such call only, exit status, and output or action. The unit separator
# separates them.
set -euo pipefail

call="${0##*/} $*"
input=
[[ $call != *" -f - "* && $call != *" -f -" ]] || input=$(cat)
# The commands of a pipeline are recorded in order: the input has ended here.
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
        "a new file") # of --output FILE: podman fails if it exists, docker overwrites it
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
