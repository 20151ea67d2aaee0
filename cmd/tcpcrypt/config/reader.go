package config

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// A reader collects problems while a decoded document is read.
type reader struct {
	file     string
	lines    map[string]int
	problems []Problem
}

// add records a problem with the value at path.
func (r *reader) add(path, format string, args ...any) {
	line := 1
	for at := path; at != ""; at = parent(at) {
		if l, ok := r.lines[at]; ok {
			line = l
			break
		}
	}
	r.problems = append(r.problems, Problem{File: r.file, Line: line, Key: path, Text: fmt.Sprintf(format, args...)})
}

// parent is the path of the table or array that path is in.
func parent(path string) string {
	if i := strings.LastIndexAny(path, ".["); i > 0 {
		return path[:i]
	}
	return ""
}

func element(key string, i int) string { return fmt.Sprintf("%s[%d]", key, i) }

// A table is one of the document's; a nil map reads as an empty one.
type table struct {
	r    *reader
	path string
	m    map[string]any
}

func (r *reader) root(doc map[string]any, known ...string) table {
	t := table{r: r, m: doc}
	t.unknown(known)
	return t
}

// unknown reports the keys that are not known.
func (t table) unknown(known []string) {
	for _, k := range slices.Sorted(maps.Keys(t.m)) {
		if slices.Contains(known, k) {
			continue
		}
		text := "unknown key; one of: " + strings.Join(known, ", ")
		if i := slices.IndexFunc(known, func(s string) bool { return strings.EqualFold(s, k) || near(s, k) }); i >= 0 {
			text = fmt.Sprintf("unknown key; did you mean %s?", known[i])
		}
		t.r.add(join(t.path, k), "%s", text)
	}
}

// near reports whether a and b differ by a letter or two.
func near(a, b string) bool {
	if len(a) < 3 || len(b) < 3 {
		return false
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal, row[j+1] = row[j+1], min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)] <= 2
}

func (t table) add(key, format string, args ...any) { t.r.add(join2(t.path, key), format, args...) }

// join2 joins a path and a key that may have an index.
func join2(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func (t table) hasProblem(key string) bool {
	path := join2(t.path, key)
	return slices.ContainsFunc(t.r.problems, func(p Problem) bool {
		return p.Key == path || strings.HasPrefix(p.Key, path+"[")
	})
}

// addIfAbsent adds a problem unless key has one of its own.
func (t table) addIfAbsent(key, format string, args ...any) {
	if !t.hasProblem(key) {
		t.add(key, format, args...)
	}
}

func (t table) value(key string) any { return t.m[key] }

func (t table) table(key string, known ...string) table {
	sub := table{r: t.r, path: join(t.path, key)}
	v, given := t.m[key]
	if !given {
		return sub
	}
	m, ok := v.(map[string]any)
	if !ok {
		t.add(key, "want a table, [%s], not %s", key, kind(v))
		return sub
	}
	sub.m = m
	sub.unknown(known)
	return sub
}

func (t table) tables(key string, known ...string) (subs []table) {
	v, given := t.m[key]
	if !given {
		return nil
	}
	list, ok := v.([]any)
	if !ok {
		t.add(key, "want rules, each under [[%s]], not %s", key, kind(v))
		return nil
	}
	for i, e := range list {
		m, ok := e.(map[string]any)
		if !ok {
			t.add(element(key, i), "want a rule under [[%s]], not %s", key, kind(e))
			continue
		}
		sub := table{r: t.r, path: join2(t.path, element(key, i)), m: m}
		sub.unknown(known)
		subs = append(subs, sub)
	}
	return subs
}

func (t table) str(key string) (string, bool) {
	v, given := t.m[key]
	s, ok := v.(string)
	if given && !ok {
		t.add(key, "want a string, not %s", kind(v))
	}
	return s, ok
}

func (t table) integer(key string) (int64, bool) {
	v, given := t.m[key]
	n, ok := v.(int64)
	if given && !ok {
		t.add(key, "want a whole number, not %s", kind(v))
	}
	return n, ok
}

func (t table) boolean(key string) (bool, bool) {
	v, given := t.m[key]
	b, ok := v.(bool)
	if given && !ok {
		t.add(key, "want true or false, not %s", kind(v))
	}
	return b, ok
}

// An item is an element of a list.
type item struct {
	at int // index
	s  string
}

// strings reads a list of strings. Elements of another type are reported once and
// left out.
func (t table) strings(key string) (ss []item, given bool) {
	v, given := t.m[key]
	if !given {
		return nil, false
	}
	list, ok := v.([]any)
	if !ok {
		t.addIfAbsent(key, "want a list of strings, not %s", kind(v))
		return nil, true
	}
	for i, e := range list {
		s, ok := e.(string)
		if !ok {
			t.addIfAbsent(element(key, i), "want a string, not %s", kind(e))
			continue
		}
		ss = append(ss, item{i, s})
	}
	return ss, true
}

// kind names the type of a decoded value as TOML does.
func kind(v any) string {
	switch v.(type) {
	case string:
		return "a string"
	case int64:
		return "a number"
	case float64:
		return "a fraction"
	case bool:
		return "true or false"
	case []any:
		return "a list"
	case map[string]any:
		return "a table"
	case time.Time:
		return "a time"
	default:
		return "a date or time"
	}
}
