# What the batch scripts share; sourced, not run.
# A site sets what its cluster needs (modules, environment, partition by SBATCH_PARTITION, NCCL) in one file of
# its own: slurm/site.sh beside this one, or the file that DIT_SCALE_SITE names.

site="${DIT_SCALE_SITE:-$SLURM_SUBMIT_DIR/slurm/site.sh}"
[ -f "$site" ] && . "$site"
PYTHON="${DIT_SCALE_PYTHON:-$SLURM_SUBMIT_DIR/.venv/bin/python}"
[ -x "$PYTHON" ] || { echo "no Python at '$PYTHON'; submit from the checkout after 'make .venv/.installed', or set DIT_SCALE_PYTHON" >&2; exit 2; }
export PYTHON

# Rank zero's address and a port below the ephemeral range, another one for each job and each of its restarts.
MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
MASTER_PORT=$((15000 + (SLURM_JOB_ID * 7 + ${SLURM_RESTART_COUNT:-0}) % 15000))
export MASTER_ADDR MASTER_PORT

say() { printf '%(%F %T)T job %s restart %s: %s\n' -1 "$SLURM_JOB_ID" "${SLURM_RESTART_COUNT:-0}" "$*"; }

# Run a job step; on USR1 (the time limit is near) or TERM (preemption) ask every task of it to stop. Sets $status.
# The tasks get USR1 in both cases: srun answers a TERM of its own by killing them. --export=ALL: or else an --export
# list given to sbatch would hold for srun too, and keep MASTER_ADDR from the tasks.
run_step() {
    srun ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} --export=ALL --kill-on-bad-exit=1 "$@" &
    local step=$!
    trap 'say "USR1: asking the tasks to stop"; kill -USR1 '"$step" USR1
    trap 'say "TERM: asking the tasks to stop"; kill -USR1 '"$step" TERM
    while kill -0 "$step" 2>/dev/null; do wait "$step"; done # a trapped signal ends wait early
    trap '' USR1 TERM                                        # what is left to do is short
    wait "$step"                                             # bash remembers the status of a step that has ended
    status=$?
}

# Print the value of key=value among the arguments, the last one winning: argument_of run_dir "$@"
argument_of() {
    local key=$1 value='' word
    shift
    for word in "$@"; do [ "${word%%=*}" = "$key" ] && value=${word#*=}; done
    printf '%s' "$value"
}

# Requeue this job if it is still ours to requeue: after scancel it is no longer RUNNING.
requeue_if_running() {
    if scontrol -o show job "$SLURM_JOB_ID" | grep -q 'JobState=RUNNING'; then
        say "requeue"
        scontrol requeue "$SLURM_JOB_ID"
    else
        say "not requeued: the job is being cancelled or requeued by someone else"
    fi
}
