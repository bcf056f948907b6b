# Job control, signals, pipes, substitutions, coprocesses, functions.
set -m
trap 'echo got usr1' USR1
sleep 1 &
jobs
wait
echo waited
( trap 'echo child term; exit 9' TERM; while :; do sleep 0.05; done ) &
p=$!
sleep 0.5; kill -STOP $p; sleep 0.2; jobs
kill -CONT $p; sleep 0.2; jobs
kill -TERM $p; wait $p; echo status $?
sleep 10 & kill %+; wait $! ; echo killed $?
kill -USR1 $$
(exit 5) & wait $!; echo $?
for i in 1 2 3 4; do (echo $((i*i))) & done | sort
set +m
coproc cat; echo hello >&${COPROC[1]}; read -r line <&${COPROC[0]}; echo "coproc $line"; eval "exec ${COPROC[1]}>&-"; wait
x=$(for i in {1..200}; do echo $i; done | while read n; do echo $((n*n)); done | tail -1); echo $x
diff=$(cat <(echo a; echo b) <(echo c)); echo "$diff" | tr '\n' ' '; echo
declare -A m; for w in a b c a b a; do m[$w]=$((m[$w]+1)); done; for k in a b c; do echo $k ${m[$k]}; done
printf '%s\n' {5..1} | sort -n | head -2
f() { local n=$1; (( n < 2 )) && { echo $n; return; }; echo $(( $(f $((n-1))) + $(f $((n-2))) )); }
f 8
cat <<< "here string"
umask; type -t cd
read -t 0.1 nothing < <(sleep 1); echo read $?
exit 42
