//go:build !race

package tcp_test

// poolSlack is how many allocations a measurement may find that are none of ours: a
// timer may run, and the collector may empty a pool.
const poolSlack = 2
