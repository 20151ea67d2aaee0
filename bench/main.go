// Bench measures what tcpcrypt costs: iperf3 between two hosts made of namespaces,
// through the kernel's TCP alone, through tcpcrypt in clear and through tcpcrypt
// encrypted, in turn and in shuffled order. Machines are noisy, so what counts is the
// ratio to the kernel in the same round.
//
//	go run ./bench [-rounds N] [-seconds N] [-streams 1,8] [-json] [-program bin/tcpcrypt]
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/tcpcrypt/tcpcrypt/cmd/tcpcrypt/lab"
)

// A mode is a way from a to b.
type mode struct {
	name      string
	plain     bool   // no daemons
	tepA      string // tep of a's daemon
	tepB      string // without a common one both relay in clear
	encrypted bool
}

var modes = []mode{
	{name: "kernel", plain: true},
	{name: "clear", tepA: "p256", tepB: "p521"},
	{name: "encrypted", tepA: "curve25519", tepB: "curve25519", encrypted: true},
}

// A result is one run of iperf3.
type result struct {
	Round    int     `json:"round"`
	Mode     string  `json:"mode"`
	Streams  int     `json:"streams"`
	Gbps     float64 `json:"gbit_per_second"` // goodput, as the receiver counts it
	CPUPerGB float64 `json:"cpu_seconds_per_gb"`
	OfKernel float64 `json:"ratio_to_kernel"` // of Gbps, in the same round
}

func main() { os.Exit(lab.Main(run)) }

func run() int {
	rounds := flag.Int("rounds", 5, "how often each way is measured")
	seconds := flag.Int("seconds", 4, "length of each run of iperf3")
	streams := flag.String("streams", "1,8", "parallel connections, a list")
	asJSON := flag.Bool("json", false, "print every run as JSON instead of the table")
	program := flag.String("program", "bin/tcpcrypt", "the binary to measure")
	flag.Parse()
	var counts []int
	for _, s := range strings.Split(*streams, ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > 128 {
			fmt.Fprintf(os.Stderr, "bench: -streams %s: want numbers from 1 to 128\n", *streams)
			return 2
		}
		counts = append(counts, n)
	}
	if *rounds < 1 || *seconds < 1 {
		fmt.Fprintln(os.Stderr, "bench: -rounds and -seconds: want 1 or more")
		return 2
	}
	results, err := measure(*program, *rounds, *seconds, counts)
	if err == nil {
		err = report(os.Stdout, results, *asJSON)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		return 1
	}
	return 0
}

func measure(program string, rounds, seconds int, streams []int) (results []result, err error) {
	for round := range rounds {
		for _, n := range streams {
			at := len(results)
			for _, i := range rand.Perm(len(modes)) {
				m := modes[i]
				fmt.Fprintf(os.Stderr, "round %d of %d: %s, %d streams\n", round+1, rounds, m.name, n)
				r, err := once(program, m, n, seconds)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", m.name, err)
				}
				r.Round = round + 1
				results = append(results, r)
			}
			i := slices.IndexFunc(results[at:], func(r result) bool { return r.Mode == "kernel" })
			for j := range results[at:] {
				results[at+j].OfKernel = results[at+j].Gbps / results[at+i].Gbps
			}
		}
	}
	return results, nil
}

// once makes a lab, runs iperf3 across it and checks that the way was the one meant.
func once(program string, m mode, streams, seconds int) (r result, err error) {
	ctx := context.Background()
	l, err := lab.New(ctx, lab.Options{Program: program, Hosts: []lab.HostOptions{
		{Name: "a", Plain: m.plain, Config: config(m.tepA)},
		{Name: "b", Plain: m.plain, Config: config(m.tepB)},
	}})
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	a, b := l.Host("a"), l.Host("b")
	if _, err := b.Serve(ctx, "exec iperf3 -s"); err != nil {
		return r, err
	}
	busy, err := busySeconds()
	if err != nil {
		return r, err
	}
	cmd := a.Command(ctx, "iperf3", "-c", "b.ip4", "-J", "-t", strconv.Itoa(seconds), "-P", strconv.Itoa(streams))
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return r, fmt.Errorf("iperf3: %w\n%s%s", err, out, exit.Stderr)
		}
		return r, fmt.Errorf("iperf3: %w", err)
	}
	after, err := busySeconds()
	if err != nil {
		return r, err
	}
	var report struct {
		End struct {
			Received struct {
				Bytes float64 `json:"bytes"`
				BPS   float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	if err := json.Unmarshal(out, &report); err != nil {
		return r, fmt.Errorf("iperf3: %w", err)
	}
	if report.End.Received.Bytes == 0 {
		return r, errors.New("iperf3 transferred nothing")
	}
	if err := checkWay(ctx, a, m); err != nil {
		return r, err
	}
	return result{Mode: m.name, Streams: streams, Gbps: report.End.Received.BPS / 1e9,
		CPUPerGB: (after - busy) / (report.End.Received.Bytes / 1e9)}, nil
}

// checkWay makes sure that what was measured is what the table will say.
func checkWay(ctx context.Context, a *lab.Host, m mode) error {
	if m.plain {
		return nil
	}
	conns, err := a.Control().Conns(ctx, true)
	if err != nil {
		return err
	}
	if len(conns) == 0 {
		return errors.New("the daemon saw no connection")
	}
	for _, c := range conns {
		if c.Encrypted != m.encrypted {
			return fmt.Errorf("a connection with encrypted = %v among those of mode %s", c.Encrypted, m.name)
		}
	}
	return nil
}

func config(tep string) string {
	return fmt.Sprintf("[crypto]\nteps = [%q]\naeads = [\"aes128gcm\"]\n\n", tep) + lab.DefaultConfig()
}

// busySeconds is the CPU time that the whole machine has spent, on everything: daemons,
// iperf3 and the kernel.
func busySeconds() (float64, error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(data), "\n")
	fields := strings.Fields(line)
	if len(fields) < 8 || fields[0] != "cpu" {
		return 0, fmt.Errorf("/proc/stat begins with %q", line)
	}
	const hertz = 100 // USER_HZ
	var sum float64
	for i, f := range fields[1:8] {
		n, err := strconv.ParseFloat(f, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		if i != 3 && i != 4 { // idle, iowait
			sum += n
		}
	}
	return sum / hertz, nil
}

func report(w io.Writer, results []result, asJSON bool) error {
	if asJSON {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(results)
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "streams\tway\tGbit/s\tof kernel\tlowest\thighest\tCPU s/GB\t")
	type key struct {
		streams int
		mode    string
	}
	groups := make(map[key][]result)
	var keys []key
	for _, m := range modes {
		for _, r := range results {
			k := key{r.Streams, r.Mode}
			if r.Mode != m.name {
				continue
			}
			if groups[k] == nil {
				keys = append(keys, k)
			}
			groups[k] = append(groups[k], r)
		}
	}
	slices.SortStableFunc(keys, func(a, b key) int { return cmp.Compare(a.streams, b.streams) })
	for _, k := range keys {
		g := groups[k]
		ratios := sorted(g, func(r result) float64 { return r.OfKernel })
		fmt.Fprintf(t, "%d\t%s\t%.2f\t%.3f\t%.3f\t%.3f\t%.2f\t\n", k.streams, k.mode,
			median(sorted(g, func(r result) float64 { return r.Gbps })), median(ratios), ratios[0], ratios[len(ratios)-1],
			median(sorted(g, func(r result) float64 { return r.CPUPerGB })))
	}
	return t.Flush()
}

func sorted(rs []result, f func(result) float64) (vs []float64) {
	for _, r := range rs {
		vs = append(vs, f(r))
	}
	slices.Sort(vs)
	return vs
}

func median(sorted []float64) float64 {
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}
