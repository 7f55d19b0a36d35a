# What the batch scripts share; sourced, not run. A site's settings are in one file: site.sh.example says which.
# Sets JOB, PYTHON, MASTER_ADDR, MASTER_PORT, DIT_SCALE_END_TIME; run_step sets $status and $asked.

# Left over in the shell that submitted, these would make every task a run of its own.
unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE GROUP_RANK

printf -v began '%(%s)T' -1
asked='' # the signal that asked this job to stop; noted from the first line on
trap 'asked=USR1' USR1
trap 'asked=TERM' TERM

JOB="$SLURM_JOB_ID"
[ -n "${SLURM_ARRAY_JOB_ID:-}" ] && JOB="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
say() { printf '%(%F %T)T job %s restart %s: %s\n' -1 "$JOB" "${SLURM_RESTART_COUNT:-0}" "$*"; }
refuse() { printf '%s\n' "$*" >&2; exit 2; }

if [ -n "${DIT_SCALE_SITE:-}" ]; then
    [ -f "$DIT_SCALE_SITE" ] || refuse "DIT_SCALE_SITE names '$DIT_SCALE_SITE', which is not a file here; give a path that the nodes see"
    . "$DIT_SCALE_SITE"
elif [ -f "$SLURM_SUBMIT_DIR/slurm/site.sh" ]; then
    . "$SLURM_SUBMIT_DIR/slurm/site.sh"
fi
PYTHON="${DIT_SCALE_PYTHON:-$SLURM_SUBMIT_DIR/.venv/bin/python}"
if [ -z "${DIT_SCALE_LAUNCH:-}${DIT_SCALE_SRUN_OPTIONS:-}" ] && [ ! -x "$PYTHON" ]; then # a container has its own
    refuse "no Python at '$PYTHON'; submit from the checkout after 'make .venv/.installed', or set DIT_SCALE_PYTHON"
fi

# One of the facts that Slurm knows of this job: fact JobState
fact() { scontrol -o show job "$JOB" | tr ' ' '\n' | sed -n "s/^$1=//p" | head -n 1; }

# When the time is up, in Unix seconds, for whoever must be done before; absent where the partition has no limit.
DIT_SCALE_END_TIME="$(date -d "$(fact EndTime)" +%s 2>/dev/null)" && export DIT_SCALE_END_TIME || unset DIT_SCALE_END_TIME

# Rank zero's address: the first node of the job, on which this script runs; by number where its name means nothing.
MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
getent hosts "$MASTER_ADDR" >/dev/null ||
    MASTER_ADDR="$(scontrol -o show node "$MASTER_ADDR" | tr ' ' '\n' | sed -n 's/^NodeAddr=//p')"
# A port below the ephemeral range, another for each job (or element of an array) and each of its restarts; the next
# one where somebody listens already.
MASTER_PORT=$((15000 + (SLURM_JOB_ID * 7 + ${SLURM_RESTART_COUNT:-0}) % 15000))
while (: <>"/dev/tcp/127.0.0.1/$MASTER_PORT") 2>/dev/null; do MASTER_PORT=$((15000 + (MASTER_PORT - 14999) % 15000)); done
export MASTER_ADDR MASTER_PORT

# Run a job step and set $status. On USR1 (the time limit is near) or TERM (preemption) ask every task to stop, by
# USR1 in both cases: srun answers a TERM of its own by killing them. --export=ALL: or else an --export list given to
# sbatch would hold for srun too, and keep MASTER_ADDR from the tasks.
run_step() {
    if [ -n "$asked" ]; then
        say "$asked: asked to stop before the step began"
        status=143
        return
    fi
    srun ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} --export=ALL --kill-on-bad-exit=1 \
        ${DIT_SCALE_SRUN_OPTIONS:-} ${DIT_SCALE_LAUNCH:-} "$@" &
    local step=$!
    trap 'asked=USR1; say "USR1: asking the tasks to stop"; kill -USR1 '"$step"' 2>/dev/null' USR1
    trap 'asked=TERM; say "TERM: asking the tasks to stop"; kill -USR1 '"$step"' 2>/dev/null' TERM
    while kill -0 "$step" 2>/dev/null; do wait "$step"; done # a trapped signal ends wait early
    trap '' USR1 TERM                                        # what is left to do is short
    wait "$step"                                             # bash remembers the status of a step that has ended
    status=$?
}

# Run a command once, on this node, in the container where there is one.
run_here() {
    case "${DIT_SCALE_SRUN_OPTIONS:-}" in
    *container*) srun --overlap --nodes=1 --ntasks=1 --export=ALL $DIT_SCALE_SRUN_OPTIONS ${DIT_SCALE_LAUNCH:-} "$@" ;;
    *) ${DIT_SCALE_LAUNCH:-} "$@" ;;
    esac
}

# Print the value of key=value among the arguments, the last one winning: argument_of run_dir "$@"
argument_of() {
    local key=$1 value='' word
    shift
    for word in "$@"; do [ "${word%%=*}" = "$key" ] && value=${word#*=}; done
    printf '%s' "$value"
}

# Whether Slurm preempts this job: it may have told the tasks alone.
is_preempted() {
    [ "$asked" = TERM ] || case "$(fact PreemptTime)" in '' | None) false ;; esac
}

# Whether this attempt has written something below a path: touched "$run_dir/history.jsonl"
touched() { [ -n "$(find "$@" -newermt "@$began" -print -quit 2>/dev/null)" ]; }

# Requeue this job if it is still ours to requeue: after scancel it is no longer RUNNING.
requeue_if_running() {
    if [ "$(fact JobState)" = RUNNING ]; then
        say "requeue"
        scontrol requeue "$JOB"
    else
        say "not requeued: the job is being cancelled or requeued by someone else"
        return 1
    fi
}

# The same for what keeps no history of its own: up to the cap.
requeue_within_cap() {
    if [ "${SLURM_RESTART_COUNT:-0}" -lt "${DIT_SCALE_MAX_RESTARTS:-100}" ]; then
        requeue_if_running
    else
        say "not requeued: ${SLURM_RESTART_COUNT:-0} restarts are the cap (DIT_SCALE_MAX_RESTARTS)"
    fi
}

# Whether every node of the job still runs something.
nodes_answer() {
    [ "$SLURM_JOB_NUM_NODES" = 1 ] || timeout --kill-after=5 "${DIT_SCALE_NODE_SECONDS:-60}" srun --overlap \
        --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task=1 /bin/true
}

# A node that loses power takes the tasks elsewhere down with it, and their errors must not pass for the program's, or
# the job would end before Slurm has noticed (SlurmdTimeout, often 300 s). Wait for it: Slurm requeues the job itself.
wait_if_a_node_is_lost() {
    local patience="${DIT_SCALE_NODE_LOST_SECONDS:-900}" since=$SECONDS
    nodes_answer && return
    say "a node does not answer: waiting up to $patience s for Slurm to notice and to requeue the job"
    trap - TERM
    while [ $((SECONDS - since)) -lt "$patience" ]; do
        sleep 10 &
        wait $!
        nodes_answer && break
    done
    say "all nodes answer, or Slurm finds nothing wrong with those that do not: not requeued"
}
