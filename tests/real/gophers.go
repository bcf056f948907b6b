// Goroutines, channels, the collector, recovered panics, timers and signals of its own.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sort"
	"sync"
	"syscall"
	"time"
)

type node struct {
	left, right *node
	value       int
}

func tree(depth int) *node {
	if depth == 0 {
		return &node{value: 1}
	}
	return &node{tree(depth - 1), tree(depth - 1), depth}
}

func (n *node) sum() int {
	if n == nil {
		return 0
	}
	return n.value + n.left.sum() + n.right.sum()
}

func guarded(work func()) (caught string) {
	defer func() {
		if what := recover(); what != nil {
			caught = fmt.Sprint(what)
		}
	}()
	work()
	return "nothing"
}

func pipeline() int {
	numbers, squares := make(chan int), make(chan int, 16)
	var group sync.WaitGroup
	for worker := 0; worker < 16; worker++ {
		group.Add(1)
		go func() {
			defer group.Done()
			for number := range numbers {
				squares <- number * number
			}
		}()
	}
	go func() {
		for number := 0; number < 20000; number++ {
			numbers <- number
		}
		close(numbers)
		group.Wait()
		close(squares)
	}()
	sum := 0
	for square := range squares {
		sum += square
	}
	return sum
}

func spin(counts []int) {
	// Loops without calls, which only a signal can preempt.
	var group sync.WaitGroup
	for index := range counts {
		group.Add(1)
		go func(index int) {
			defer group.Done()
			for round := 0; round < 30_000_000; round++ {
				counts[index] += round & 1
			}
		}(index)
	}
	group.Wait()
}

func main() {
	fmt.Println("pipeline", pipeline())
	debug.SetGCPercent(20)
	total := 0
	var mutex sync.Mutex
	var group sync.WaitGroup
	for gardener := 0; gardener < 8; gardener++ {
		group.Add(1)
		go func() {
			defer group.Done()
			for round := 0; round < 6; round++ {
				sum := tree(12).sum()
				mutex.Lock()
				total += sum
				mutex.Unlock()
			}
		}()
	}
	group.Wait()
	fmt.Println("trees", total)
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	fmt.Println("collected", stats.NumGC > 3)
	fmt.Println("nil:", guarded(func() { var n *node; n.value = 1 }))
	fmt.Println("index:", guarded(func() { s := make([]int, 3); i := 5; s[i%7]++ }))
	fmt.Println("divide:", guarded(func() { zero := len(os.Args) - len(os.Args); _ = 1 / zero }))
	counts := make([]int, 6)
	spin(counts)
	fmt.Println("spun", counts)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGUSR1)
	syscall.Kill(os.Getpid(), syscall.SIGUSR1)
	fmt.Println("signal", <-signals)
	start := time.Now()
	timeout := time.After(50 * time.Millisecond)
	ticks := 0
	ticker := time.NewTicker(10 * time.Millisecond)
loop:
	for {
		select {
		case <-ticker.C:
			ticks++
		case <-timeout:
			break loop
		}
	}
	fmt.Println("ticked", ticks > 0, time.Since(start) >= 50*time.Millisecond)
	words := map[string]int{}
	for number := 0; number < 100000; number++ {
		words[fmt.Sprint(number%977)]++
	}
	keys := make([]string, 0, len(words))
	for word := range words {
		keys = append(keys, word)
	}
	sort.Strings(keys)
	fmt.Println("words", len(keys), keys[:5], words["12"])
	os.Exit(7)
}
