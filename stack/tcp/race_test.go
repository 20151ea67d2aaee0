//go:build race

package tcp_test

// poolSlack is how many allocations a measurement may find that are none of ours: under
// the race detector a sync.Pool forgets a quarter of what it is given.
const poolSlack = 16
