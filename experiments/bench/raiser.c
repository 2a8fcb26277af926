/* Says as whom it runs, and what a file holds; with privileges of its own, whether these mean anything
   (``vcg bench escape``). */
#include <errno.h>
#include <stdio.h>
#include <unistd.h>
#include <fcntl.h>

int main(int count, char **arguments)
{
    char found[256];
    ssize_t length;
    int fd;

    printf("%d\n", (int)geteuid());
    if (count < 2)
        return 0;
    fd = open(arguments[1], O_RDONLY);
    if (fd < 0 && errno == EACCES) {
        puts("EACCES");
        return 0;
    }
    length = read(fd, found, sizeof found);
    if (fd < 0 || length < 0) {
        perror(arguments[1]);
        return 1;
    }
    printf("%.*s\n", (int)length, found);
    return 0;
}
