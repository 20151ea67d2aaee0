package routing

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// A fake host is a list of what has been done to it.
type fakeHost []string

func (h *fakeHost) change(what string, undoErr error) change {
	return change{
		what: what,
		do:   func() error { *h = append(*h, what); return nil },
		undo: func() error {
			if undoErr == nil {
				*h = slices.DeleteFunc(*h, func(s string) bool { return s == what })
			}
			return undoErr
		},
	}
}

func TestRollbackUndoesNewestFirst(t *testing.T) {
	var order []string
	var x tx
	for _, what := range []string{"a", "b", "c"} {
		err := x.apply(change{what: what, do: func() error { return nil }, undo: func() error { order = append(order, what); return nil }})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := x.apply(change{what: "not to be undone", do: func() error { return nil }}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := x.rollback(); err != nil {
			t.Error(err)
		}
	}
	if got := strings.Join(order, ""); got != "cba" {
		t.Errorf("undone in the order %q", got)
	}
}

func TestFailedChangeIsNotUndone(t *testing.T) {
	errNo := errors.New("no")
	for failing := range 5 {
		var host fakeHost
		x := tx{fix: func(error) string { return "try harder" }}
		for i := range 5 {
			c := host.change(fmt.Sprint("step ", i), nil)
			if i == failing {
				c.do = func() error { return errNo }
				c.undo = func() error { t.Error("undone without being done"); return nil }
			}
			err := x.apply(c)
			if i != failing {
				if err != nil {
					t.Fatal(err)
				}
				continue
			}
			var e *Error
			if !errors.As(err, &e) || e.What != c.what || e.Fix != "try harder" || !errors.Is(err, errNo) {
				t.Errorf("apply: %v", err)
			}
			break
		}
		if err := x.rollback(); err != nil || len(host) != 0 {
			t.Errorf("failure of step %d leaves %q, %v", failing, host, err)
		}
	}
}

func TestRollbackGoesOnAfterAnError(t *testing.T) {
	errStuck := errors.New("stuck")
	var host fakeHost
	var x tx
	for _, c := range []change{host.change("a", nil), host.change("b", errStuck), host.change("c", nil)} {
		if err := x.apply(c); err != nil {
			t.Fatal(err)
		}
	}
	err := x.rollback()
	if !errors.Is(err, errStuck) || !strings.Contains(err.Error(), `undo "b"`) {
		t.Errorf("rollback: %v", err)
	}
	if !slices.Equal(host, []string{"b"}) {
		t.Errorf("left: %q", host)
	}
}
