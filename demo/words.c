/* words: count the different words of standard input and print the most frequent ones. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BUCKETS = 4096, LONGEST = 63 };

struct word {
	struct word *next;
	long count;
	char text[LONGEST + 1];
};

static struct word *table[BUCKETS];
static long distinct;

static void count(const char *text)
{
	unsigned h = 5381;
	for (const char *p = text; *p; p++)
		h = h * 33 + (unsigned char)*p;
	for (struct word *w = table[h % BUCKETS]; w; w = w->next) {
		if (strcmp(w->text, text) == 0) {
			w->count++;
			return;
		}
	}
	struct word *w = calloc(1, sizeof *w);
	if (!w)
		abort();
	strcpy(w->text, text);
	w->count = 1;
	w->next = table[h % BUCKETS];
	table[h % BUCKETS] = w;
	distinct++;
}

static int by_count(const void *a, const void *b)
{
	const struct word *x = *(struct word *const *)a, *y = *(struct word *const *)b;
	if (x->count != y->count)
		return x->count < y->count ? 1 : -1;
	return strcmp(x->text, y->text);
}

int main(int argc, char **argv)
{
	long top = argc > 1 ? atol(argv[1]) : 10;
	char text[LONGEST + 1];
	int n = 0, c;
	do {
		c = getchar();
		if (c != EOF && isalpha(c)) {
			if (n < LONGEST)
				text[n++] = (char)tolower(c);
		} else if (n > 0) {
			text[n] = 0;
			count(text);
			n = 0;
		}
	} while (c != EOF);

	struct word **all = malloc((size_t)(distinct + 1) * sizeof *all);
	if (!all)
		abort();
	long i = 0;
	for (int b = 0; b < BUCKETS; b++)
		for (struct word *w = table[b]; w; w = w->next)
			all[i++] = w;
	qsort(all, (size_t)distinct, sizeof *all, by_count);
	for (i = 0; i < distinct && i < top; i++)
		printf("%ld %s\n", all[i]->count, all[i]->text);
	return 0;
}
